/**
 * The names an options object may use. A misspelt option must not pass in silence: it would change
 * what runs and nobody would see it.
 */

import { EngineError } from '../errors.ts'
import type { EngineOptions, GenerateManyRequest, GenerateRequest, ScoreOptions } from './types.ts'

const MAX_OUTPUTS = 16

/** One entry per key of T; the type keeps the list complete. */
type Names<T> = Readonly<Record<keyof Required<T>, true>>

const ENGINE_OPTIONS: Names<EngineOptions> = {
  tensorParallel: true,
  expertParallel: true,
  device: true,
  devices: true,
  precision: true,
  nanoBatches: true,
  deterministic: true,
  graphs: true,
  maxModelLen: true,
  maxNumSeqs: true,
  maxNumBatchedTokens: true,
  kvCacheBytes: true,
  hostKvBytes: true,
  maxWaiting: true,
  threads: true,
  prefixCache: true,
  waitTimeoutMs: true,
  cpuIsa: true,
  pipelineDepth: true,
  schedulerPolicy: true,
  stepBudget: true,
  admission: true,
  preemption: true,
  tpotTargetMs: true,
  starvationMs: true,
  eventLog: true,
  eventLogBytes: true,
  expertSlots: true,
  expertBalance: true,
  expertBalancePeriod: true,
  expertPlacement: true,
  onProgress: true,
  signal: true,
}

const SCORE_OPTIONS: Names<ScoreOptions> = { signal: true, deadlineMs: true }

const GENERATE_REQUEST: Names<GenerateRequest> = {
  ...SCORE_OPTIONS,
  prompt: true,
  messages: true,
  tokens: true,
  tools: true,
  grammar: true,
  chatTemplateKwargs: true,
  skipSpecialTokens: true,
  priority: true,
  program: true,
  tpotTargetMs: true,
  pinTtlMs: true,
  cacheSalt: true,
  onQueued: true,
  maxTokens: true,
  minTokens: true,
  temperature: true,
  topP: true,
  topK: true,
  minP: true,
  repetitionPenalty: true,
  presencePenalty: true,
  frequencyPenalty: true,
  logitBias: true,
  seed: true,
  stop: true,
  stopTokenIds: true,
  ignoreEos: true,
  logprobs: true,
  topLogprobs: true,
}

const GENERATE_MANY_REQUEST: Names<GenerateManyRequest> = { ...GENERATE_REQUEST, n: true }

/** Names people know from other engines. */
const ALIASES: Readonly<Record<string, string>> = {
  tp: 'tensorParallel',
  ep: 'expertParallel',
  maxnewtokens: 'maxTokens',
  maxcompletiontokens: 'maxTokens',
  input: 'prompt',
  guidedregex: 'grammar',
  guidedgrammar: 'grammar',
  guidedjson: 'grammar',
  responseformat: 'grammar',
}

/** ERR_USAGE unless `options` is an object that names engine options only. */
export function checkEngineOptions(options: EngineOptions): void {
  requireNames(options, ENGINE_OPTIONS, 'Engine.load')
}

/** ERR_USAGE unless `request` is an object that names request fields only. */
export function checkGenerateRequest(request: GenerateRequest): void {
  requireNames(request, GENERATE_REQUEST, 'the request')
}

/** The same for several outputs; and ERR_USAGE unless `n` is 1..16. */
export function checkGenerateManyRequest(request: GenerateManyRequest): void {
  requireNames(request, GENERATE_MANY_REQUEST, 'the request')
  const { n } = request
  if (!(Number.isInteger(n) && n >= 1 && n <= MAX_OUTPUTS))
    throw new EngineError('ERR_USAGE', `n must be a whole number from 1 to ${MAX_OUTPUTS}`)
}

/** ERR_USAGE unless `options` is an object that names options of forward and score only. */
export function checkScoreOptions(options: ScoreOptions): void {
  requireNames(options, SCORE_OPTIONS, 'the options')
}

function requireNames(value: unknown, names: Readonly<Record<string, true>>, where: string): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new EngineError('ERR_USAGE', `${where} must be given as an object`)
  for (const [name, setting] of Object.entries(value)) {
    if (Object.hasOwn(names, name) || setting === undefined) continue
    const meant = closestName(name, Object.keys(names))
    const hint =
      meant === undefined ? `known: ${Object.keys(names).join(', ')}` : `did you mean ${meant}?`
    throw new EngineError('ERR_USAGE', `${where}: there is no option ${name}; ${hint}`)
  }
}

/** The same letters whatever the case and separators, or an alias. */
function closestName(name: string, names: readonly string[]): string | undefined {
  const fold = (text: string) => text.toLowerCase().replace(/[^a-z0-9]/g, '')
  const folded = fold(name)
  const alias = Object.hasOwn(ALIASES, folded) ? ALIASES[folded] : undefined
  if (alias !== undefined) return names.includes(alias) ? alias : undefined
  return names.find((known) => fold(known) === folded)
}
