/**
 * `nanoweave bench serve`: puts a workload on a server that speaks OpenAI's API, whichever it is, and
 * says how it took it.
 */

import { EngineError } from '../../errors.ts'
import {
  type ArrivalName,
  findLengthTrace,
  generateWorkload,
  LENGTH_TRACES,
  parseTrace,
  type WorkloadOptions,
} from '../../workload/index.ts'
import { describeMachine } from '../machine.ts'
import { type GoodputTargets, type ServeBenchReport, summarizeRun } from './report.ts'
import { LoadClient, type ServeBenchOptions } from './run.ts'

export { compareReports, formatComparison, parseReport } from './compare.ts'
export { renderHtml } from './html.ts'
export { formatReport, type ServeBenchReport } from './report.ts'

export interface ServeBench extends ServeBenchOptions {
  /** Name of published lengths, or the text of a recorded trace. */
  readonly trace: { readonly name: string; readonly text: string | undefined }
  readonly arrivals: ArrivalName | undefined
  readonly rate: number | undefined
  /** Closed loop: requests open at once; `rate` and `arrivals` are not used. */
  readonly concurrency: number | undefined
  readonly numRequests: number | undefined
  readonly durationMs: number | undefined
  readonly maxPromptTokens: number | undefined
  readonly maxOutputTokens: number | undefined
  readonly targets: GoodputTargets
  readonly onProgress: (done: number, total: number) => void
}

/** For servers that do not tell the length of their context. */
const DEFAULT_MAX_TOKENS = 4096
/** Requests of a closed loop that is bounded by time alone. */
const MAX_CLOSED_REQUESTS = 100_000

/** ERR_USAGE for options, ERR_IO when there is no server, ERR_ABORTED. */
export async function runServeBench(bench: ServeBench): Promise<ServeBenchReport> {
  if (bench.concurrency !== undefined && (bench.rate ?? bench.arrivals) !== undefined)
    throw new EngineError('ERR_USAGE', 'a closed loop (--concurrency) has no rate and no arrivals')
  const client = new LoadClient(bench)
  try {
    const facts = await client.probe()
    const half = Math.floor((facts.maxModelLen ?? 2 * DEFAULT_MAX_TOKENS) / 2)
    const maxPromptTokens = bench.maxPromptTokens ?? half
    const maxOutputTokens = bench.maxOutputTokens ?? half
    const requests = generateWorkload({
      ...loadShape(bench),
      seed: bench.seed,
      maxPromptTokens,
      maxOutputTokens,
    })
    let numDone = 0
    const onEnd = (): void => bench.onProgress(++numDone, requests.length)
    const run =
      bench.concurrency === undefined
        ? await client.runOpen(facts, requests, onEnd)
        : await client.runClosed(
            facts,
            requests,
            bench.concurrency,
            bench.durationMs ?? Number.POSITIVE_INFINITY,
            onEnd,
          )
    return summarizeRun(run, bench.targets, {
      machine: describeMachine(),
      options: {
        url: bench.url,
        model: facts.model,
        endpoint: bench.endpoint,
        trace: bench.trace.name,
        arrivals: bench.concurrency === undefined ? (bench.arrivals ?? null) : null,
        rate: bench.rate ?? null,
        concurrency: bench.concurrency ?? null,
        requests: bench.numRequests ?? null,
        durationMs: bench.durationMs ?? null,
        seed: bench.seed,
        maxPromptTokens,
        maxOutputTokens,
        ignoreEos: bench.ignoreEos,
      },
    })
  } finally {
    client.close()
  }
}

type Shape = Omit<WorkloadOptions, 'seed' | 'maxPromptTokens' | 'maxOutputTokens'>

function loadShape(bench: ServeBench): Shape {
  const { name, text } = bench.trace
  const trace = text === undefined ? findLengthTrace(name) : parseTrace(text)
  if (bench.concurrency === undefined) {
    const { arrivals, rate, numRequests, durationMs } = bench
    return { trace, arrivals, rate, numRequests, durationMs }
  }
  if (bench.numRequests === undefined && bench.durationMs === undefined)
    throw new EngineError('ERR_USAGE', 'say how many requests, or for how long')
  const numRequests = bench.numRequests ?? MAX_CLOSED_REQUESTS
  return { trace, arrivals: 'constant', rate: 1, numRequests, durationMs: undefined }
}

/** Names of the traces that need no file. */
export const TRACE_NAMES: readonly string[] = LENGTH_TRACES.map(({ name }) => name)
