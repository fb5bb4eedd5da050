/**
 * Workloads: what is asked for and when, from a seed. Pure, and the same for `nanoweave bench serve`,
 * which sends it, and for the simulator, which computes what would become of it.
 */

import { EngineError } from '../errors.ts'
import { ARRIVAL_PROCESSES, type ArrivalName } from './arrivals.ts'
import { drawLength, LENGTH_TRACES, type LengthTrace } from './lengths.ts'
import { createRandom, type Random } from './random.ts'
import type { TraceRow } from './trace-file.ts'

export { ARRIVAL_PROCESSES, type ArrivalName, type ArrivalProcess } from './arrivals.ts'
export { LENGTH_TRACES, type LengthTrace, lengthQuantile } from './lengths.ts'
export { createRandom, type Random } from './random.ts'
export { parseTrace, type TraceRow } from './trace-file.ts'

export interface WorkloadRequest {
  /** From the start of the run. */
  readonly arrivalMs: number
  readonly promptTokens: number
  readonly outputTokens: number
}

export interface WorkloadOptions {
  /** Published lengths, or the rows of a recorded trace, taken in order and again from the start. */
  readonly trace: LengthTrace | readonly TraceRow[]
  /** How requests come; undefined: as recorded in the trace, its times scaled to `rate`. */
  readonly arrivals: ArrivalName | undefined
  /** Mean requests per second; undefined: as recorded. */
  readonly rate: number | undefined
  /** The run ends with the first of the two. */
  readonly numRequests: number | undefined
  readonly durationMs: number | undefined
  readonly seed: number
  /** Lengths are cut to what the model can take. */
  readonly maxPromptTokens: number
  readonly maxOutputTokens: number
}

/** Requests a run may have. */
const MAX_REQUESTS = 1_000_000

/** ERR_USAGE for an unknown name. */
export function findLengthTrace(name: string): LengthTrace {
  const found = LENGTH_TRACES.find((trace) => trace.name === name)
  if (found !== undefined) return found
  const names = LENGTH_TRACES.map((trace) => trace.name).join(', ')
  throw new EngineError(
    'ERR_USAGE',
    `no trace is called '${name}'; there are ${names}, or give the path of a file`,
  )
}

/** Requests in order of arrival, at least one. ERR_USAGE for options that say nothing sensible. */
export function generateWorkload(options: WorkloadOptions): readonly WorkloadRequest[] {
  const { numRequests = MAX_REQUESTS, durationMs = Number.POSITIVE_INFINITY } = options
  if (options.numRequests === undefined && options.durationMs === undefined)
    throw new EngineError('ERR_USAGE', 'say how many requests, or for how long')
  if (!(numRequests >= 1 && numRequests <= MAX_REQUESTS))
    throw new EngineError('ERR_USAGE', `a run has 1 to ${MAX_REQUESTS} requests`)
  const random = createRandom(options.seed)
  // Lengths have random numbers of their own: another rate asks for the same requests.
  const lengths = createLengths(options, createRandom(options.seed + 1))
  const nextArrival = createArrivals(options, random)
  const requests: WorkloadRequest[] = []
  while (requests.length < numRequests) {
    const arrivalMs = nextArrival()
    if (arrivalMs >= durationMs && requests.length > 0) break
    requests.push({ arrivalMs, ...lengths() })
  }
  return requests
}

type Lengths = Omit<WorkloadRequest, 'arrivalMs'>

function createLengths(options: WorkloadOptions, random: Random): () => Lengths {
  const { trace, maxPromptTokens, maxOutputTokens } = options
  if (!isRows(trace))
    return () => ({
      promptTokens: drawLength(random, trace.promptTokens, maxPromptTokens),
      outputTokens: drawLength(random, trace.outputTokens, maxOutputTokens),
    })
  let at = 0
  return () => {
    const { promptTokens, outputTokens } = trace[at++ % trace.length]
    return {
      promptTokens: Math.min(maxPromptTokens, promptTokens),
      outputTokens: Math.min(maxOutputTokens, outputTokens),
    }
  }
}

/** Times of arrival, one after the other; the first request comes at 0. */
function createArrivals(options: WorkloadOptions, random: Random): () => number {
  const { arrivals, rate, trace } = options
  if (rate !== undefined && !(rate > 0 && rate <= 1e6))
    throw new EngineError('ERR_USAGE', 'a rate is more than 0, at most 1,000,000 a second')
  if (arrivals === undefined && isRows(trace) && (trace[trace.length - 1].arrivalMs ?? 0) > 0)
    return replayArrivals(trace, rate)
  if (rate === undefined)
    throw new EngineError('ERR_USAGE', 'give a rate: the trace does not say when requests come')
  const name = arrivals ?? 'poisson'
  const distance = ARRIVAL_PROCESSES.find((each) => each.name === name)!.start(random, rate)
  let nowMs = 0
  let isFirst = true
  return () => {
    if (!isFirst) nowMs += distance(nowMs)
    isFirst = false
    return nowMs
  }
}

/** Recorded times, their mean rate scaled to `rate`; a repetition follows after one mean distance. */
function replayArrivals(rows: readonly TraceRow[], rate: number | undefined): () => number {
  const spanMs = rows[rows.length - 1].arrivalMs!
  const meanMs = spanMs / (rows.length - 1)
  const scale = rate === undefined ? 1 : 1000 / rate / meanMs
  let at = 0
  return () => {
    const round = Math.floor(at / rows.length)
    const row = rows[at++ % rows.length]
    return scale * (round * (spanMs + meanMs) + row.arrivalMs!)
  }
}

function isRows(trace: WorkloadOptions['trace']): trace is readonly TraceRow[] {
  return Array.isArray(trace)
}
