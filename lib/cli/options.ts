/**
 * Options shared by the commands that run a model: where and how the engine runs, and how tokens
 * are chosen. Each option is declared once here and turned into the library's types.
 */

import { type Command, InvalidArgumentError, Option } from 'commander'
import type { DeviceKind, EngineOptions, Precision, SamplingOptions } from '../engine/types.ts'

export function parseNumber(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('not a number')
  return value
}

export function parseCount(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('not a whole number')
  return Number(text)
}

export function parsePositive(text: string): number {
  if (/^-\d+$/.test(text)) throw new InvalidArgumentError('must be at least 1')
  const value = parseCount(text)
  if (value === 0) throw new InvalidArgumentError('must be at least 1')
  return value
}

const bytesOfUnit = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 } as const

/** `4000000`, `4GB` (of 1000), `4GiB` or `4G` (of 1024). */
export function parseBytes(text: string): number {
  const parts = /^(\d+(?:\.\d+)?) ?([kmgt]?)(i?b)?$/i.exec(text)
  if (parts === null) throw new InvalidArgumentError('expected bytes: 4000000000, 4GB or 4GiB')
  const [, number, prefix = '', suffix = ''] = parts
  const unit = bytesOfUnit[prefix.toLowerCase() as keyof typeof bytesOfUnit]
  const isDecimal = suffix.toLowerCase() === 'b'
  const size = isDecimal ? 1000 ** Math.round(Math.log2(unit) / 10) : unit
  const bytes = Math.floor(Number(number) * size)
  if (bytes < 1) throw new InvalidArgumentError('must be at least 1')
  if (!Number.isSafeInteger(bytes)) throw new InvalidArgumentError('too large')
  return bytes
}

function parseSeed(text: string): bigint {
  if (!/^\d{1,20}$/.test(text)) throw new InvalidArgumentError('not a whole number')
  return BigInt.asUintN(64, BigInt(text))
}

/** `1,2,3` → [1, 2, 3]. */
export function parseTokens(text: string): number[] {
  const parts = text.split(',').map((part) => part.trim())
  if (!parts.every((part) => /^\d+$/.test(part))) {
    throw new InvalidArgumentError('expected token ids with commas between: 1,2,3')
  }
  return parts.map(Number)
}

function parseNanoBatches(text: string): 'auto' | number {
  if (text === 'auto') return text
  if (!/^[1-4]$/.test(text)) throw new InvalidArgumentError('expected auto, 1, 2, 3 or 4')
  return Number(text)
}

/** What commander gives for addEngineOptions and addSchedulerOptions. */
export interface EngineFlags {
  readonly tp?: number
  readonly ep?: number
  readonly expertSlots?: number
  readonly expertBalance?: string
  readonly expertBalancePeriod?: number
  readonly expertPlacement?: string
  readonly device?: DeviceKind
  readonly devices?: string
  readonly precision?: Precision
  readonly nanoBatches?: 'auto' | number
  readonly deterministic?: boolean
  readonly graphs?: boolean
  readonly maxModelLen?: number
  readonly kvCacheBytes?: number
  readonly hostKvBytes?: number
  readonly schedule?: string
  readonly budget?: string
  readonly admission?: string
  readonly preemption?: string
  readonly tpotTarget?: number
  readonly eventLog?: string
  readonly eventLogBytes?: number
  readonly threads?: number
}

export function precisionOption(): Option {
  return new Option('--precision <P>', 'compute in').choices(['auto', 'f32', 'bf16'])
}

export function addEngineOptions(command: Command): Command {
  return command
    .option('--tp <W>', 'ranks that share every layer', parsePositive)
    .option('--ep <N>', 'ranks that share the experts', parsePositive)
    .option('--expert-slots <N>', 'slots of each rank for replicas of experts', parseCount)
    .option('--expert-balance <P>', 'off, count, eplb or least-loaded')
    .option('--expert-placement <FILE>', 'trace by which experts are placed on ranks')
    .addOption(new Option('--device <D>', 'where to run').choices(['cpu', 'cuda', 'auto']))
    .option('--devices <LIST>', 'devices of the ranks: cuda:0,cuda:1')
    .addOption(precisionOption())
    .option('--nano-batches <N>', 'parts of a step: auto or 1..4', parseNanoBatches)
    .option('--deterministic', 'results independent of the batch')
    .option('--no-graphs', 'CUDA: launch every kernel by itself')
    .option('--max-model-len <N>', 'longest prompt and output, tokens', parsePositive)
    .option('--kv-cache-bytes <N>', 'size of the KV cache: 2000000000, 2GB, 2GiB', parseBytes)
    .option('--threads <N>', 'CPU threads of all ranks together', parsePositive)
}

/** For commands that serve many requests at once. */
export function addSchedulerOptions(command: Command): Command {
  return command
    .option('--host-kv-bytes <N>', 'host memory for the KV of preempted requests', parseBytes)
    .option('--schedule <POLICY>', 'who waits least: fcfs, priority, shortest-remaining, …')
    .option('--budget <POLICY>', 'tokens of a step: fixed, dense, milliseconds')
    .option('--admission <POLICY>', 'who may start: projected-peak, prompt-fits')
    .option('--preemption <HOW>', 'auto, recompute, swap')
    .option('--tpot-target <MS>', 'time per output token, for --budget milliseconds', parseNumber)
    .option('--expert-balance-period <N>', 'steps between plans of expert placement', parsePositive)
    .option('--event-log <FILE>', 'write what the scheduler sees, prompts included, for replay')
    .option('--event-log-bytes <N>', 'where that file ends (default 1GiB)', parseBytes)
}

/** Copies `flags` to the library's names; what was not given stays absent. */
export function readEngineOptions(flags: EngineFlags): EngineOptions {
  const { tp, ep, devices, ...same } = flags
  const named: Record<string, unknown> = {
    tensorParallel: tp,
    expertParallel: ep,
    expertSlots: same.expertSlots,
    expertBalance: same.expertBalance,
    expertBalancePeriod: same.expertBalancePeriod,
    expertPlacement: same.expertPlacement,
    devices: devices?.split(',').map((name) => name.trim()),
    device: same.device,
    precision: same.precision,
    nanoBatches: same.nanoBatches,
    deterministic: same.deterministic,
    // commander gives true where --no-graphs is absent.
    graphs: same.graphs === false ? false : undefined,
    maxModelLen: same.maxModelLen,
    kvCacheBytes: same.kvCacheBytes,
    hostKvBytes: same.hostKvBytes,
    schedulerPolicy: same.schedule,
    stepBudget: same.budget,
    admission: same.admission,
    preemption: same.preemption,
    tpotTargetMs: same.tpotTarget,
    eventLog: same.eventLog,
    eventLogBytes: same.eventLogBytes,
    threads: same.threads,
  }
  return withoutUndefined(named) as EngineOptions
}

/** What commander gives for addSamplingOptions. */
export interface SamplingFlags {
  readonly maxTokens?: number
  readonly temperature?: number
  readonly topP?: number
  readonly topK?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly seed?: bigint
  readonly stop?: string[]
  readonly ignoreEos?: boolean
}

export function addSamplingOptions(command: Command): Command {
  return command
    .option('--max-tokens <N>', 'tokens to generate at most', parsePositive)
    .option('--temperature <T>', '0: always the most likely token', parseNumber)
    .option('--top-p <P>', 'sample from the most likely tokens of this mass', parseNumber)
    .option('--top-k <K>', 'sample from the K most likely tokens', parseCount)
    .option('--min-p <P>', 'least probability, as a share of the best', parseNumber)
    .option('--repetition-penalty <R>', 'above 1: tokens seen become less likely', parseNumber)
    .option('--seed <S>', 'the same seed gives the same text', parseSeed)
    .option('--stop <TEXT...>', 'end before any of these texts')
    .option('--ignore-eos', 'go on after the end-of-text token')
}

export function readSamplingOptions(flags: SamplingFlags): SamplingOptions {
  const { maxTokens, temperature, topP, topK, minP, repetitionPenalty, seed, stop, ignoreEos } =
    flags
  return withoutUndefined({
    maxTokens,
    temperature,
    topP,
    topK,
    minP,
    repetitionPenalty,
    seed,
    stop,
    ignoreEos,
  }) as SamplingOptions
}

function withoutUndefined(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}
