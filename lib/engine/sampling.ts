/**
 * Sampling options of a request: checked, completed with the model's defaults, and written into the
 * device's slot state. Everything a client can say has a range, so nothing it says can make a
 * step invalid or a request unboundedly expensive.
 */

import { EngineError } from '../errors.ts'
import type { GenerationDefaults } from './generation-config.ts'
import { ROW_FLAG, type SlotUpdates } from './step.ts'
import type { SamplingOptions } from './types.ts'

export interface Sampling {
  readonly maxTokens: number
  readonly minTokens: number
  /** 0: greedy. */
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly minP: number
  readonly repetitionPenalty: number
  readonly presencePenalty: number
  readonly frequencyPenalty: number
  /** 64 bits, unsigned. */
  readonly seed: bigint
  readonly bias: ReadonlyMap<number, number>
  readonly stopStrings: readonly string[]
  readonly stopTokens: ReadonlySet<number>
  readonly wantsLogprobs: boolean
  readonly topLogprobs: number
}

export interface SamplingContext {
  readonly defaults: GenerationDefaults
  readonly eosTokenIds: readonly number[]
  readonly vocabSize: number
  /** Tokens that may follow the prompt. */
  readonly room: number
  readonly randomSeed: () => bigint
}

const MAX_STOP_STRINGS = 64
const MAX_STOP_LENGTH = 1024
const MAX_STOP_TOKENS = 1024
const MAX_BIASED_TOKENS = 4096
/** Below this a temperature is greedy: dividing by it would only overflow. */
const MIN_TEMPERATURE = 1e-5
/** Added to the logits of stop tokens until `minTokens`; then taken away, exactly. */
const STOP_BAN = -131072

/** ERR_USAGE names the option that is wrong. `room` is not enforced on an explicit maxTokens. */
export function resolveSampling(options: SamplingOptions, context: SamplingContext): Sampling {
  const { defaults } = context
  const narrows =
    options.topP !== undefined || options.topK !== undefined || options.minP !== undefined
  const temperature =
    number(options.temperature, 'temperature', 0, 100) ?? defaults.temperature ?? (narrows ? 1 : 0)
  const topP = number(options.topP, 'topP', 0, 1) ?? defaults.topP ?? 1
  if (topP === 0) throw usage('topP', 'must be above 0')
  const maxTokens =
    integer(options.maxTokens, 'maxTokens', 1, 2 ** 31 - 1) ??
    Math.max(1, Math.min(context.room, defaults.maxTokens ?? context.room))
  const minTokens = integer(options.minTokens, 'minTokens', 0, 2 ** 31 - 1) ?? 0
  if (minTokens > maxTokens)
    throw usage('minTokens', `is ${minTokens}, more than the ${maxTokens} tokens allowed`)
  const topLogprobs = integer(options.topLogprobs, 'topLogprobs', 0, 20) ?? 0
  const ignoreEos = flag(options.ignoreEos, 'ignoreEos')
  return {
    maxTokens,
    minTokens,
    temperature: temperature < MIN_TEMPERATURE ? 0 : temperature,
    topK: integer(options.topK, 'topK', 0, 2 ** 31 - 1) ?? defaults.topK ?? 0,
    topP,
    minP: number(options.minP, 'minP', 0, 1) ?? defaults.minP ?? 0,
    repetitionPenalty:
      number(options.repetitionPenalty, 'repetitionPenalty', 1e-3, 1e3) ??
      defaults.repetitionPenalty ??
      1,
    presencePenalty: number(options.presencePenalty, 'presencePenalty', -100, 100) ?? 0,
    frequencyPenalty: number(options.frequencyPenalty, 'frequencyPenalty', -100, 100) ?? 0,
    seed: seed(options.seed) ?? context.randomSeed(),
    bias: logitBias(options.logitBias, context.vocabSize),
    stopStrings: stopStrings(options.stop),
    stopTokens: new Set([
      ...(ignoreEos ? [] : context.eosTokenIds),
      ...stopTokens(options.stopTokenIds, context.vocabSize),
    ]),
    wantsLogprobs: flag(options.logprobs, 'logprobs') || topLogprobs > 0,
    topLogprobs,
  }
}

/** Flags of the rows that sample, beside ROW_FLAG.sample. */
export function samplingRowFlags(sampling: Sampling): number {
  return sampling.wantsLogprobs ? ROW_FLAG.logprob | (sampling.topLogprobs << 8) : 0
}

/** State of `slot` before its first sampled token. `prompt`: what a repetition penalty sees. */
export function writeSlotState(
  sampling: Sampling,
  slot: number,
  prompt: Int32Array,
  updates: SlotUpdates,
): void {
  const { params, history, bias } = updates
  params.push(slot)
  params.push(Number(BigInt.asIntN(32, sampling.seed)))
  params.push(Number(BigInt.asIntN(32, sampling.seed >> 32n)))
  params.pushFloat(sampling.temperature)
  params.push(sampling.topK)
  params.pushFloat(sampling.topP)
  params.pushFloat(sampling.minP)
  params.pushFloat(sampling.repetitionPenalty)
  params.pushFloat(sampling.presencePenalty)
  params.pushFloat(sampling.frequencyPenalty)
  params.push(0) // flags
  params.push(0) // reserved
  if (sampling.repetitionPenalty !== 1) {
    history.push(slot)
    history.push(prompt.length)
    history.pushAll(prompt)
  }
  const banned = sampling.minTokens > 0 ? sampling.stopTokens : NO_TOKENS
  let numBiased = banned.size
  for (const token of sampling.bias.keys()) if (!banned.has(token)) numBiased++
  if (numBiased === 0) return
  bias.push(slot)
  bias.push(numBiased)
  for (const token of banned) {
    bias.push(token)
    bias.pushFloat(STOP_BAN)
  }
  for (const [token, value] of sampling.bias) {
    if (banned.has(token)) continue
    bias.push(token)
    bias.pushFloat(value)
  }
}

const NO_TOKENS: ReadonlySet<number> = new Set()

/**
 * Lets stop tokens come from now on. A slot's biases add up, so the ban is first taken back, which
 * leaves exactly 0, and then the request's own bias added.
 */
export function writeStopsAllowed(sampling: Sampling, slot: number, updates: SlotUpdates): void {
  const { bias } = updates
  let own = 0
  for (const token of sampling.stopTokens) if (sampling.bias.has(token)) own++
  bias.push(slot)
  bias.push(sampling.stopTokens.size + own)
  for (const token of sampling.stopTokens) {
    bias.push(token)
    bias.pushFloat(-STOP_BAN)
    const value = sampling.bias.get(token)
    if (value === undefined) continue
    bias.push(token)
    bias.pushFloat(value)
  }
}

/** The next token of the slot is one of those in `mask`. */
export function writeAllowedTokens(mask: Int32Array, slot: number, updates: SlotUpdates): void {
  const { allowed } = updates
  allowed.push(slot)
  allowed.push(mask.length)
  allowed.pushAll(mask)
}

function usage(option: string, problem: string): EngineError {
  return new EngineError('ERR_USAGE', `${option} ${problem}`)
}

function number(value: unknown, option: string, min: number, max: number): number | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value !== 'number' || !(value >= min && value <= max))
    throw usage(option, `must be a number from ${min} to ${max}`)
  return value
}

function integer(value: unknown, option: string, min: number, max: number): number | undefined {
  const result = number(value, option, min, max)
  if (result !== undefined && !Number.isInteger(result))
    throw usage(option, `must be a whole number from ${min} to ${max}`)
  return result
}

function flag(value: unknown, option: string): boolean {
  if (value === undefined || value === null) return false
  if (typeof value !== 'boolean') throw usage(option, 'must be true or false')
  return value
}

function seed(value: unknown): bigint | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value === 'bigint') return BigInt.asUintN(64, value)
  if (!Number.isSafeInteger(value)) throw usage('seed', 'must be a whole number')
  return BigInt.asUintN(64, BigInt(value as number))
}

function stopStrings(value: unknown): string[] {
  if (value === undefined || value === null) return []
  const strings: unknown[] = Array.isArray(value) ? value : [value]
  if (strings.length > MAX_STOP_STRINGS)
    throw usage('stop', `has ${strings.length} strings; at most ${MAX_STOP_STRINGS} are accepted`)
  for (const text of strings) {
    if (typeof text !== 'string' || text.length === 0 || text.length > MAX_STOP_LENGTH)
      throw usage('stop', `must be strings of 1 to ${MAX_STOP_LENGTH} characters`)
    if (/\p{Surrogate}/u.test(text)) throw usage('stop', 'holds half a surrogate pair')
  }
  return [...new Set(strings as string[])]
}

function stopTokens(value: unknown, vocabSize: number): number[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value) || value.length > MAX_STOP_TOKENS)
    throw usage('stopTokenIds', `must be a list of at most ${MAX_STOP_TOKENS} token ids`)
  for (const id of value) requireToken(id, 'stopTokenIds', vocabSize)
  return value
}

function logitBias(value: SamplingOptions['logitBias'], vocabSize: number): Map<number, number> {
  const bias = new Map<number, number>()
  if (value === undefined || value === null) return bias
  if (typeof value !== 'object') throw usage('logitBias', 'must map token ids to numbers')
  const entries = value instanceof Map ? [...value] : Object.entries(value)
  if (entries.length > MAX_BIASED_TOKENS)
    throw usage(
      'logitBias',
      `names ${entries.length} tokens; at most ${MAX_BIASED_TOKENS} are accepted`,
    )
  for (const [key, amount] of entries) {
    const token = typeof key === 'number' ? key : /^\d{1,10}$/.test(key) ? Number(key) : -1
    requireToken(token, 'logitBias', vocabSize)
    bias.set(token, number(amount, 'logitBias', -100, 100) ?? 0)
  }
  return bias
}

export function requireToken(id: unknown, option: string, vocabSize: number): void {
  if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabSize)
    throw usage(option, `holds ${String(id)}, which is not a token id from 0 to ${vocabSize - 1}`)
}

const GOLDEN_GAMMA = 0x9e3779b97f4a7c15n

/** Seed of output `index`: `seed` for the first, then its SplitMix64 sequence (Steele et al., 2014). */
export function derivedSeed(seed: bigint, index: number): bigint {
  if (index === 0) return seed
  let z = BigInt.asUintN(64, seed + BigInt(index) * GOLDEN_GAMMA)
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n)
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn)
  return z ^ (z >> 31n)
}
