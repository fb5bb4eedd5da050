/** What the server asks of an engine, and the options and limits of the server itself. */

import type {
  EngineInfo,
  EngineStats,
  GenerateHandler,
  GenerateManyRequest,
  GenerateRequest,
  StepRecord,
} from '../engine/types.ts'
import type { Tokenizer } from '../tokenizer/index.ts'

/** The part of Engine that the server uses; tests put other things behind it. */
export interface ServedEngine {
  readonly info: EngineInfo
  readonly tokenizer: Tokenizer | undefined
  dispatch(request: GenerateManyRequest, handler: GenerateHandler): void
  tokenize(
    request: Pick<GenerateRequest, 'prompt' | 'messages' | 'tools' | 'chatTemplateKwargs'>,
  ): Promise<number[]>
  pin(id: number, ttlMs: number): boolean
  stats(): EngineStats
  recentSteps(): readonly StepRecord[]
}

export interface ServerOptions {
  /** Name clients ask for. Default: the model folder's name. */
  readonly modelName?: string
  /** Any of these opens /v1, /tokenize and /detokenize. None: open to all. */
  readonly apiKeys?: readonly string[]
  /** The key guards every route. */
  readonly guardAll?: boolean
  /** Format of tool calls in the output: a name of tools/index.ts, `none`, or `auto`. */
  readonly toolFormat?: string
  /** Split `<think>…</think>` from the answer. Default: when the model has a token for it. */
  readonly reasoning?: boolean
  /** How long the KV of a turn that calls tools is kept for their answers, milliseconds. Default 0. */
  readonly toolPinTtlMs?: number
  /** `silent`: no log. Default `info`. */
  readonly logLevel?: string
  readonly limits?: Partial<ServerLimits>
}

/** Bounds on what clients may ask and hold. */
export interface ServerLimits {
  readonly bodyBytes: number
  readonly headerBytes: number
  readonly jsonDepth: number
  /** Requests accepted at once, whatever they wait for. */
  readonly requests: number
  /** Bodies of all accepted requests together. */
  readonly totalBodyBytes: number
  readonly connections: number
  /** From the first byte of a request to its last. */
  readonly receiveMs: number
  readonly pingMs: number
  /** A client that does not take what is written, or a whole response, in this time is dropped. */
  readonly stalledMs: number
  /** Steps in flight without one ending for this long: not ready. */
  readonly stepOverdueMs: number
}

export const DEFAULT_LIMITS: ServerLimits = {
  bodyBytes: 8 * 2 ** 20,
  headerBytes: 16 * 2 ** 10,
  jsonDepth: 64,
  requests: 2048,
  totalBodyBytes: 256 * 2 ** 20,
  connections: 8192,
  receiveMs: 60_000,
  pingMs: 15_000,
  stalledMs: 60_000,
  stepOverdueMs: 30_000,
}

/** Fixed: they are part of the documented interface. */
export const MAX_MESSAGES = 4096
export const MAX_CHOICES = 16
export const MAX_PROMPTS = 64
export const MAX_STOPS = 4
export const MAX_TOOLS = 128
/** As long as the engine pins anything. */
export const MAX_TOOL_PIN_MS = 3_600_000
export const MAX_TOP_LOGPROBS = 20
/** Ids in one request to /tokenize, /detokenize or /v1/completions. */
export const MAX_TOKEN_IDS = 2 ** 18
/** Longer texts cannot fit the context, and would only keep the tokenizer busy. */
export const MAX_CHARACTERS_PER_TOKEN = 32
