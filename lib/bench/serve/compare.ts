/**
 * Two reports side by side. Each latency's change carries a 95 % bootstrap interval over the requests of
 * both runs; one that contains no change is said to be undecided. The interval knows nothing of what
 * differs from run to run, so a difference it calls real still needs a repetition.
 */

import { EngineError } from '../../errors.ts'
import { createRandom, type Random } from '../../workload/index.ts'
import { quantile } from '../stats.ts'
import { formatValue, type ServeBenchReport, type ServeBenchRow } from './report.ts'

const RESAMPLES = 1000
/** Fewer requests than this say nothing about a percentile. */
const MIN_REQUESTS = 20

type NoInterval = 'too few requests' | 'one figure a run'

export interface Change {
  readonly name: string
  readonly before: number
  readonly after: number
  /** after / before, and its 95 % interval, or why there is none. */
  readonly ratio: number
  readonly interval: readonly [low: number, high: number] | NoInterval
}

const METRICS = [
  ['TTFT', (row: ServeBenchRow) => row.ttftMs],
  ['TPOT', (row: ServeBenchRow) => row.tpotMs],
  ['end to end', (row: ServeBenchRow) => row.e2eMs],
] as const

/** ERR_USAGE unless `text` is a report of `nanoweave bench serve`. */
export function parseReport(text: string, name: string): ServeBenchReport {
  try {
    const report = JSON.parse(text) as ServeBenchReport
    if (report.suite === 'serve' && report.version === 1 && Array.isArray(report.rows))
      return report
  } catch {
    // Said below.
  }
  throw new EngineError('ERR_USAGE', `${name} is no report of \`nanoweave bench serve --json\``)
}

/** Options in which the runs differ: then their figures may differ because of them. */
export function differentOptions(before: ServeBenchReport, after: ServeBenchReport): string[] {
  const names = new Set([...Object.keys(before.options), ...Object.keys(after.options)])
  return [...names].filter((name) => before.options[name] !== after.options[name])
}

export function compareReports(before: ServeBenchReport, after: ServeBenchReport): Change[] {
  const changes: Change[] = []
  for (const [name, of] of METRICS) {
    const values = [before, after].map((report) => goodValues(report, of))
    if (values.some(({ length }) => length === 0)) continue
    for (const [label, q] of [
      ['p50', 0.5],
      ['p99', 0.99],
    ] as const)
      changes.push(compareQuantile(`${name} ${label}, ms`, values[0], values[1], q))
  }
  for (const [name, field] of [
    ['output tokens/s', 'outputTokensPerSecond'],
    ['goodput, requests/s', 'goodput'],
  ] as const) {
    const [first, second] = [before[field], after[field]]
    if (first === null || second === null) continue
    const ratio = second / first
    changes.push({ name, before: first, after: second, ratio, interval: 'one figure a run' })
  }
  return changes
}

function goodValues(
  report: ServeBenchReport,
  of: (row: ServeBenchRow) => number | null,
): readonly number[] {
  return report.rows
    .filter((row) => row.error === null)
    .map(of)
    .filter((value) => value !== null)
}

function compareQuantile(
  name: string,
  first: readonly number[],
  second: readonly number[],
  q: number,
): Change {
  const before = quantile(first, q)
  const after = quantile(second, q)
  const change = { name, before, after, ratio: after / before }
  // The tail of a quantile needs requests beyond it.
  const tail = Math.min(first.length, second.length) * (1 - q)
  if (tail < MIN_REQUESTS / 20 || Math.min(first.length, second.length) < MIN_REQUESTS)
    return { ...change, interval: 'too few requests' }
  const random = createRandom(1)
  const draws = [first, second].map((values) => quantileDraws(values, q, random))
  const ratios = Array.from({ length: RESAMPLES }, () => draws[1]() / draws[0]())
  return { ...change, interval: [quantile(ratios, 0.025), quantile(ratios, 0.975)] }
}

/**
 * Quantiles of resamples of `values`: how many of a resample lie below a quantile is binomial, here
 * by its normal approximation, which gives the order statistic that it takes.
 */
function quantileDraws(values: readonly number[], q: number, random: Random): () => number {
  const sorted = values.toSorted((a, b) => a - b)
  const last = sorted.length - 1
  const spread = Math.sqrt(sorted.length * q * (1 - q))
  return () => {
    const rank = Math.round(last * q + random.normal() * spread)
    return sorted[Math.min(last, Math.max(0, rank))]
  }
}

export function verdict({ interval }: Change): string {
  if (typeof interval === 'string') return `${interval}: cannot tell`
  if (interval[0] <= 1 && interval[1] >= 1) return 'undecided'
  return interval[1] < 1 ? 'lower' : 'higher'
}

export function formatComparison(before: ServeBenchReport, after: ServeBenchReport): string {
  const changes = compareReports(before, after)
  const width = Math.max(...changes.map(({ name }) => name.length), 10)
  const lines = [
    `${''.padEnd(width)}  ${'before'.padStart(9)} ${'after'.padStart(9)} ${'×'.padStart(7)}  95 %`,
  ]
  for (const change of changes) {
    const { name, interval, ratio } = change
    const range =
      typeof interval === 'string' ? '' : `${interval.map((bound) => bound.toFixed(2)).join('–')}  `
    lines.push(
      `${name.padEnd(width)}  ${formatValue(change.before).padStart(9)} ${formatValue(change.after).padStart(9)} ${ratio.toFixed(2).padStart(7)}  ${range}${verdict(change)}`,
    )
  }
  const different = differentOptions(before, after)
  if (different.length > 0) lines.push('', `The runs differ in: ${different.join(', ')}.`)
  lines.push(
    '',
    'The intervals are over the requests of one run each; what differs from run to run is not in them.',
  )
  return `${lines.join('\n')}\n`
}
