/**
 * The types of the public library: options of an engine, requests, chunks and results. Everything
 * here is plain data; lib/engine/engine.ts gives it meaning. Lengths are tokens, times are
 * milliseconds and sizes are bytes unless a name says otherwise.
 */

import type { ErrorCode } from '../errors.ts'
import type { GrammarSpec } from '../grammar/grammar.ts'
import type { LoadProgress } from '../native/binding.ts'
import type { BalancePolicy, ExpertLoads } from '../parallel/balance/balancer.ts'
import type { Lane } from '../program/types.ts'

export type { LoadProgress } from '../native/binding.ts'
export type { BalancePolicy, ExpertLoads } from '../parallel/balance/balancer.ts'
export type { ExpertTrace } from '../parallel/balance/trace.ts'

export type Precision = 'auto' | 'f32' | 'bf16'
export type DeviceKind = 'auto' | 'cpu' | 'cuda'
export type CpuIsa = 'auto' | 'portable' | 'avx2' | 'avx512' | 'avx512bf16' | 'amx'

export interface EngineOptions {
  /** Ranks that share every layer. Default 1. */
  readonly tensorParallel?: number
  /**
   * Ranks that share the experts. Default 1. More than tensorParallel: every tensorParallel ranks are an
   * attention group with sequences and a KV cache of its own, and all groups step together.
   */
  readonly expertParallel?: number
  /**
   * Slots of each rank for replicas of experts, beside its own. Default 0. They take the memory of so
   * many experts in every layer.
   */
  readonly expertSlots?: number
  /**
   * `off`; `count`: loads of experts are counted (stats, metrics); `eplb`: heavy experts get replicas;
   * `least-loaded`: what a rank has too much of is computed by others, at prefill sizes. Default: `eplb`
   * with expertSlots, else `off`. The tokens are the same whatever is chosen.
   */
  readonly expertBalance?: 'off' | BalancePolicy
  /** Steps from one plan to the next. Default: 256, 8 for `least-loaded`. */
  readonly expertBalancePeriod?: number
  /** Trace of routing by which experts are placed on ranks at load; `inspect --experts` records one. */
  readonly expertPlacement?: string
  /** `auto`: CUDA devices where there are any, else the CPU. */
  readonly device?: DeviceKind
  /** Where the ranks run, repeated as needed: `['cuda:0', 'cuda:1']`. Overrides `device`. */
  readonly devices?: readonly string[]
  /** Compute precision; `auto` follows the weights, on CUDA it is `bf16`. */
  readonly precision?: Precision
  /** Parts a step is split into, 1..4. `auto`: the planner decides (1 on the CPU). */
  readonly nanoBatches?: 'auto' | number
  /** A request's bits do not depend on its batch. Slower. */
  readonly deterministic?: boolean
  /** CUDA: run decoding steps as captured graphs. Default true; false to find faults. */
  readonly graphs?: boolean
  /** Longest prompt + output. Default: the model's, or what the KV cache holds. */
  readonly maxModelLen?: number
  /** Sequences that run at once, in each attention group. */
  readonly maxNumSeqs?: number
  /** Tokens of one step, of each attention group. */
  readonly maxNumBatchedTokens?: number
  /** KV cache of all ranks together. Default on the CPU: min(4 GiB, a quarter of free memory). */
  readonly kvCacheBytes?: number
  /**
   * Host memory for the KV of preempted requests, of all ranks together; 0: what is preempted is
   * computed again. Default 0: it pays where computing is slow beside copying, and takes memory.
   */
  readonly hostKvBytes?: number
  /** Requests that may wait in each attention group before ERR_QUEUE_FULL. Default: 4 × maxNumSeqs. */
  readonly maxWaiting?: number
  /** CPU threads of all ranks together. Default: all cores. */
  readonly threads?: number
  /** Reuse the KV blocks of equal prefixes. Default true. */
  readonly prefixCache?: boolean
  /** Bound on every wait of a rank for its peers. Default 30,000. */
  readonly waitTimeoutMs?: number
  /** Upper bound on the instruction set of CPU kernels. */
  readonly cpuIsa?: CpuIsa
  /** Steps in flight: 2 plans the next step while one runs. Default 2. */
  readonly pipelineDepth?: 1 | 2
  /**
   * Who waits least: `fcfs` (default), `priority`, `shortest-remaining`, `hrrn`, `longest-prefix` or
   * `least-attained`; docs/serving.md explains them.
   */
  readonly schedulerPolicy?: string
  /** How many tokens a step computes: `fixed` (default), `dense` or `milliseconds`. */
  readonly stepBudget?: string
  /** Which requests may start: `projected-peak` (default) or `prompt-fits`. */
  readonly admission?: string
  /**
   * How a preempted request gives up its KV blocks: `recompute`, `swap` to the host, or `auto`
   * (default): what is expected to cost less.
   */
  readonly preemption?: string
  /** Time per output token that the budget `milliseconds` keeps, for requests that name none. */
  readonly tpotTargetMs?: number
  /** After this long a waiting request goes first, whatever the policy. Default 30,000. */
  readonly starvationMs?: number
  /**
   * File that every event of the scheduler is written to, for replay; it holds the tokens of all
   * prompts and outputs.
   */
  readonly eventLog?: string
  /** Size at which that file ends, with a line that says so. Default 1 GiB. */
  readonly eventLogBytes?: number
  readonly onProgress?: (progress: LoadProgress) => void
  /** Cancels the load. */
  readonly signal?: AbortSignal
}

/** Part of a message: text, or something a template may know. */
export interface MessagePart {
  readonly type: string
  readonly text?: string
}

export interface ChatMessage {
  readonly role: string
  readonly content?: string | readonly MessagePart[] | null
  readonly [field: string]: unknown
}

/** How tokens are chosen. What is left out comes from the model's generation_config.json. */
export interface SamplingOptions {
  /** Tokens to generate at most. Default: up to the end of the context. */
  readonly maxTokens?: number
  /** No stop token before this many. Default 0. */
  readonly minTokens?: number
  /** 0: greedy. Default: generation_config.json, else 0 (1 when topP, topK or minP is given). */
  readonly temperature?: number
  readonly topP?: number
  /** 0: off. */
  readonly topK?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly presencePenalty?: number
  readonly frequencyPenalty?: number
  /** Token id → added to its logit, -100..100. */
  readonly logitBias?: ReadonlyMap<number, number> | Readonly<Record<string, number>>
  /** 64-bit; random when absent. The same seed gives the same tokens whatever else runs. */
  readonly seed?: number | bigint
  /** The output ends before any of these strings. */
  readonly stop?: string | readonly string[]
  /** The output ends with any of these tokens. */
  readonly stopTokenIds?: readonly number[]
  /** Do not stop at the model's end-of-sequence tokens. */
  readonly ignoreEos?: boolean
  /** Return the log-probability of every generated token. */
  readonly logprobs?: boolean
  /** And of the most likely alternatives, 0..20; implies `logprobs`. */
  readonly topLogprobs?: number
}

export type { GrammarSpec } from '../grammar/grammar.ts'

/** Exactly one of `prompt`, `messages`, `tokens`. */
export interface GenerateRequest extends SamplingOptions {
  /**
   * Raw text; the beginning-of-sequence token is added where the model has one. Text that spells a
   * special token (`<|end|>`) becomes that token, as in transformers, here and in `messages`: a service
   * that quotes strangers strips it first.
   */
  readonly prompt?: string
  /** Rendered with the model's chat template; text parts are joined by line breaks first. */
  readonly messages?: readonly ChatMessage[]
  /** Token ids as they are. */
  readonly tokens?: readonly number[]
  /** For the chat template. */
  readonly tools?: readonly unknown[]
  readonly chatTemplateKwargs?: Readonly<Record<string, unknown>>
  /**
   * What the output follows: `{ json: true }`, `{ schema }`, `{ regex }` or `{ ebnf }`. It ends where
   * the grammar does, or at `maxTokens` with finishReason `length`. Log-probabilities are those
   * without the grammar.
   */
  readonly grammar?: GrammarSpec
  /** Leave special tokens out of `text`. Default true. */
  readonly skipSpecialTokens?: boolean
  /** Higher runs first, where the policy knows priorities; the lowest is preempted first. Default 0. */
  readonly priority?: number
  /** Requests of one program share their turn under the policy `least-attained`. */
  readonly program?: string
  /** Time per output token to keep, where the step budget is `milliseconds`. */
  readonly tpotTargetMs?: number
  /**
   * After a regular end, keep the KV of this conversation for so long: a tool is being called and its
   * answer will follow. At most an hour; bounded by a quarter of the KV cache. Default 0.
   */
  readonly pinTtlMs?: number
  /** Requests with different salts never share KV blocks. */
  readonly cacheSalt?: string
  /** Time from now after which the request fails with ERR_DEADLINE. */
  readonly deadlineMs?: number
  readonly signal?: AbortSignal
  /**
   * Called with the request's id (for `explain`) once it is queued; with several outputs for each of
   * them in order of its `index`, else that is 0. What it throws ends all of them.
   */
  readonly onQueued?: (id: number, index: number) => void
}

/**
 * `n` outputs of one prompt. The prompt is computed once and its KV blocks are shared; each output
 * has a seed of its own, derived from `seed` where that is given, and its own end. `signal` and
 * `deadlineMs` end all of them.
 */
export interface GenerateManyRequest extends GenerateRequest {
  /** 1..16. */
  readonly n: number
}

/** `abort` is what `explain` and `stats` report of a request that failed or was cancelled. */
export type FinishReason = 'stop' | 'length' | 'abort'

export interface TokenLogprob {
  readonly token: number
  readonly logprob: number
  /** Most likely first; empty unless `topLogprobs` asks. */
  readonly top: readonly { readonly token: number; readonly logprob: number }[]
}

export interface Usage {
  readonly promptTokens: number
  readonly completionTokens: number
  /** Prompt tokens whose KV was reused. */
  readonly cachedTokens: number
}

export interface Timings {
  /** From the call until the request is queued: its template, its tokens, its grammar. */
  readonly prepareMs: number
  /** From there to the first step that names the request. */
  readonly queueMs: number
  /** From the call to the first token. */
  readonly ttftMs: number
  readonly totalMs: number
  /** Generated tokens per second, first token excluded; 0 with fewer than two tokens. */
  readonly tokensPerSecond: number
  /** Prompt tokens computed per second until the first token. */
  readonly promptTokensPerSecond: number
}

/** What is new since the last chunk. Only the last one has finishReason, usage and timings. */
export interface GenerateChunk {
  /** Never half a code point, never part of a stop string; may be empty. */
  readonly text: string
  /** Generated ids, including the token that ended the output. */
  readonly tokens: readonly number[]
  readonly logprobs?: readonly TokenLogprob[]
  readonly finishReason?: FinishReason
  /** The stop string or stop token that ended the output. */
  readonly stopReason?: string | number
  readonly usage?: Usage
  readonly timings?: Timings
}

export interface GenerateResult {
  readonly id: number
  readonly text: string
  readonly tokens: readonly number[]
  readonly logprobs?: readonly TokenLogprob[]
  readonly finishReason: FinishReason
  readonly stopReason?: string | number
  readonly usage: Usage
  readonly timings: Timings
}

export interface CompleteManyResult {
  /** In order of their index. `usage.promptTokens` of each is the whole prompt. */
  readonly choices: readonly GenerateResult[]
  /** Of all together: the prompt counts once. */
  readonly usage: Usage
}

/**
 * What `Engine.dispatch` tells its caller, output by output, at the end of the turn in which a step's
 * result came. Whatever `onChunk` throws ends its output, with `onError`.
 */
export interface GenerateHandler {
  /** The last one has a finishReason. */
  onChunk(index: number, chunk: GenerateChunk): void
  /**
   * The output ended without its last chunk; an EngineError, or what a callback threw. What this one
   * throws becomes a warning of the process (`NanoweaveWarning`) and ends nothing else.
   */
  onError(index: number, error: unknown): void
}

/** `return()` cancels the request; breaking out of `for await` calls it. */
export interface GenerateStream extends AsyncIterableIterator<GenerateChunk> {
  return(): Promise<IteratorResult<GenerateChunk>>
}

export interface ScoreOptions {
  readonly signal?: AbortSignal
  readonly deadlineMs?: number
}

export interface ForwardResult {
  /** [tokens, vocabulary], row-major. */
  readonly logits: Float32Array
  readonly shape: readonly [tokens: number, vocabSize: number]
}

export interface ScoreResult {
  /** Log-probability of token i given those before it; null for the first. */
  readonly logprobs: readonly (number | null)[]
}

export interface CloseOptions {
  /** Let pending requests finish for up to this long before they fail with ERR_CLOSED. Default 0. */
  readonly drainMs?: number
}

export interface ProgramSummary {
  readonly name: string
  readonly ops: number
  readonly opsPerLane: Readonly<Record<Lane, number>>
  readonly nanoBatches: number
  readonly arenaBytes: number
}

/** The schedule of steps of at least `minTokens` tokens. */
export interface ScheduleSummary {
  readonly minTokens: number
  readonly nanoBatches: number
  readonly description: string
}

/** What was loaded, and the sizes chosen for it. */
export interface EngineInfo {
  readonly folder: string
  readonly architecture: string
  readonly parameters: number
  readonly vocabSize: number
  readonly world: number
  readonly tensorParallel: number
  readonly expertParallel: number
  /** Groups of ranks with sequences and a KV cache of their own: world / tensorParallel. */
  readonly attentionGroups: number
  /** Device of each rank. */
  readonly devices: readonly string[]
  readonly precision: string
  readonly deterministic: boolean
  readonly maxModelLen: number
  readonly maxNumSeqs: number
  readonly maxNumBatchedTokens: number
  readonly kvBlockSize: number
  readonly kvBlocks: number
  readonly kvCacheBytes: number
  readonly weightBytesPerRank: number
  /** Of the shortest steps. */
  readonly program: ProgramSummary
  /** Ascending by minTokens. */
  readonly schedules: readonly ScheduleSummary[]
  readonly loadMs: number
}

export interface EngineStats {
  readonly running: number
  readonly waiting: number
  /** KV blocks: free + cached + used = total. Cached blocks are reusable and evictable. */
  readonly kvBlocks: {
    readonly total: number
    readonly free: number
    readonly cached: number
    readonly used: number
    /** Of those used: held by `pinTtlMs`, counted once per request. */
    readonly pinned: number
  }
  /** KV blocks on the host: of preempted requests that will be copied back. */
  readonly hostBlocks: { readonly total: number; readonly used: number }
  /** Of each attention group (expertParallel above tensorParallel makes several): sequences and blocks of its own. */
  readonly groups: readonly {
    readonly running: number
    readonly waiting: number
    readonly preemptions: number
    readonly kvBlocks: {
      readonly total: number
      readonly free: number
      readonly cached: number
      readonly used: number
    }
  }[]
  readonly steps: number
  readonly stepsInFlight: number
  /** Of all steps that have ended: time in which they ran, and waited behind the step before. */
  readonly stepRunMs: number
  readonly stepQueueMs: number
  /** Results of the collectives of all steps, on each rank. */
  readonly collectiveBytes: number
  readonly promptTokens: number
  readonly generatedTokens: number
  /** Tokens sampled after a stop that was noticed a step late. */
  readonly droppedTokens: number
  /** Prompt tokens looked up in, and found in, the prefix cache. */
  readonly prefixQueries: number
  readonly prefixHits: number
  readonly preemptions: number
  /** Preemptions whose KV was copied to the host, and back. */
  readonly swapsOut: number
  readonly swapsIn: number
  readonly finished: Readonly<Record<FinishReason, number>>
  /** Where experts are counted or moved. */
  readonly experts?: ExpertLoads
  /** The fault that ended the engine, if any. */
  readonly failed?: ErrorCode
}

/** A step that has ended. Times in milliseconds; moments on the clock of `performance.now()`. */
export interface StepRecord {
  readonly id: number
  /** Planning and encoding it. */
  readonly planMs: number
  readonly submittedMs: number
  /** Behind the step before it, in the runtime. */
  readonly queueMs: number
  /** From its first op to the last rank's last one. */
  readonly runMs: number
  /** Its result was here. */
  readonly endedMs: number
  readonly sequences: number
  readonly decodeTokens: number
  readonly prefillTokens: number
  /** Tokens of each nano-batch. */
  readonly nanoBatches: readonly number[]
}

/** One scheduling decision about a request, the same ones in a row counted together. */
export interface Decision {
  readonly reason: string
  readonly firstStep: number
  readonly lastStep: number
  readonly count: number
}

export interface Explanation {
  readonly id: number
  readonly state: string
  /** Requests in front of it, while it waits. */
  readonly queuePosition?: number
  readonly promptTokens: number
  readonly computedTokens: number
  readonly generatedTokens: number
  readonly kvBlocks: number
  readonly preemptions: number
  /** Oldest first, the last 32. */
  readonly decisions: readonly Decision[]
}
