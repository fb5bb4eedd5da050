/**
 * What a run against a server comes to: percentiles of TTFT, TPOT, ITL and end-to-end time, throughput,
 * goodput, errors, late starts. The request rows stay in the report, so that two can be compared.
 */

import type { Machine } from '../machine.ts'
import { quantile } from '../stats.ts'
import type { LoadRun, RequestRecord } from './run.ts'

export interface Percentiles {
  readonly p50: number
  readonly p90: number
  readonly p99: number
}

export interface ServeBenchRow {
  readonly plannedMs: number
  readonly lateMs: number
  readonly error: string | null
  readonly promptTokens: number
  readonly outputTokens: number
  readonly ttftMs: number
  /** Between tokens, on average; null with one token or none. */
  readonly tpotMs: number | null
  readonly e2eMs: number
}

export interface ServeBenchReport {
  readonly version: 1
  readonly suite: 'serve'
  /** Where the load came from, which need not be where the server runs. */
  readonly machine: Machine
  readonly options: Readonly<Record<string, string | number | boolean | null>>
  readonly targets: { readonly ttftMs: number | null; readonly tpotMs: number | null }
  readonly wallMs: number
  readonly requests: number
  readonly succeeded: number
  /** Error → how often. */
  readonly errors: Readonly<Record<string, number>>
  readonly promptTokens: number
  readonly outputTokens: number
  readonly requestsPerSecond: number
  readonly outputTokensPerSecond: number
  readonly totalTokensPerSecond: number
  /** Requests per second inside both targets; null without any. */
  readonly goodput: number | null
  readonly ttftMs: Percentiles | null
  readonly tpotMs: Percentiles | null
  readonly itlMs: Percentiles | null
  readonly e2eMs: Percentiles | null
  /** Requests sent more than LATE_MS after their time: the client was the bottleneck. */
  readonly lateStarts: number
  readonly lateMs: Percentiles | null
  readonly rows: readonly ServeBenchRow[]
}

export const LATE_MS = 20

export interface GoodputTargets {
  readonly ttftMs: number | undefined
  readonly tpotMs: number | undefined
}

export function summarizeRun(
  { records, wallMs }: LoadRun,
  targets: GoodputTargets,
  header: Pick<ServeBenchReport, 'machine' | 'options'>,
): ServeBenchReport {
  const rows = records.map(toRow)
  const good = rows.filter((row) => row.error === null)
  const seconds = wallMs / 1000
  const promptTokens = sum(good, (row) => row.promptTokens)
  const outputTokens = sum(good, (row) => row.outputTokens)
  const isTargeted = targets.ttftMs !== undefined || targets.tpotMs !== undefined
  const errors: Record<string, number> = {}
  for (const { error } of rows) if (error !== null) errors[error] = (errors[error] ?? 0) + 1
  const gapsMs = records.filter(({ error }) => error === undefined).flatMap((each) => each.gapsMs)
  return {
    version: 1,
    suite: 'serve',
    ...header,
    targets: { ttftMs: targets.ttftMs ?? null, tpotMs: targets.tpotMs ?? null },
    wallMs,
    requests: rows.length,
    succeeded: good.length,
    errors,
    promptTokens,
    outputTokens,
    requestsPerSecond: good.length / seconds,
    outputTokensPerSecond: outputTokens / seconds,
    totalTokensPerSecond: (promptTokens + outputTokens) / seconds,
    goodput: isTargeted ? good.filter((row) => meets(row, targets)).length / seconds : null,
    ttftMs: percentiles(good.map((row) => row.ttftMs)),
    tpotMs: percentiles(good.map((row) => row.tpotMs).filter((value) => value !== null)),
    itlMs: percentiles(gapsMs),
    e2eMs: percentiles(good.map((row) => row.e2eMs)),
    lateStarts: rows.filter((row) => row.lateMs > LATE_MS).length,
    lateMs: percentiles(rows.map((row) => row.lateMs)),
    rows,
  }
}

function toRow(record: RequestRecord): ServeBenchRow {
  const { plannedMs, lateMs, error, promptTokens, ttftMs, totalMs, gapsMs } = record
  // A server that does not count: one token an event.
  const outputTokens = record.outputTokens || gapsMs.length + 1
  return {
    plannedMs,
    lateMs,
    error: error ?? null,
    promptTokens,
    outputTokens,
    ttftMs,
    tpotMs: outputTokens > 1 ? (totalMs - ttftMs) / (outputTokens - 1) : null,
    e2eMs: totalMs,
  }
}

function meets(row: ServeBenchRow, { ttftMs, tpotMs }: GoodputTargets): boolean {
  if (ttftMs !== undefined && row.ttftMs > ttftMs) return false
  return tpotMs === undefined || row.tpotMs === null || row.tpotMs <= tpotMs
}

function percentiles(values: readonly number[]): Percentiles | null {
  if (values.length === 0) return null
  return { p50: quantile(values, 0.5), p90: quantile(values, 0.9), p99: quantile(values, 0.99) }
}

function sum(rows: readonly ServeBenchRow[], of: (row: ServeBenchRow) => number): number {
  return rows.reduce((total, row) => total + of(row), 0)
}

export const LATENCIES = [
  ['TTFT', 'ttftMs'],
  ['TPOT', 'tpotMs'],
  ['ITL', 'itlMs'],
  ['end to end', 'e2eMs'],
] as const

export function formatValue(value: number): string {
  if (value === 0) return '0'
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

/** Name and value of every figure that is not a latency. */
export function figures(report: ServeBenchReport): readonly (readonly [string, string])[] {
  const { requests, succeeded, targets, goodput } = report
  const within = [
    targets.ttftMs === null ? [] : [`TTFT ≤ ${targets.ttftMs} ms`],
    targets.tpotMs === null ? [] : [`TPOT ≤ ${targets.tpotMs} ms`],
  ].flat()
  return [
    ['requests', `${succeeded} of ${requests} in ${formatValue(report.wallMs / 1000)} s`],
    ['requests/s', formatValue(report.requestsPerSecond)],
    ['output tokens/s', formatValue(report.outputTokensPerSecond)],
    ['all tokens/s', formatValue(report.totalTokensPerSecond)],
    ...(goodput === null
      ? []
      : [[`goodput (${within.join(', ')})`, `${formatValue(goodput)} requests/s`] as const]),
    ['started late', `${report.lateStarts} by more than ${LATE_MS} ms`],
    ...Object.entries(report.errors).map(
      ([error, count]) => [`error: ${error}`, `${count}`] as const,
    ),
  ]
}

export function formatReport(report: ServeBenchReport): string {
  const rows = figures(report)
  const width = Math.max(...rows.map(([name]) => name.length), 14)
  const lines = rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`)
  lines.push(
    '',
    `${'ms'.padEnd(width)}  ${['p50', 'p90', 'p99'].map((p) => p.padStart(9)).join('')}`,
  )
  for (const [name, field] of LATENCIES) {
    const values = report[field]
    const cells =
      values === null
        ? ['–', '–', '–']
        : [values.p50, values.p90, values.p99].map((value) => formatValue(value))
    lines.push(`${name.padEnd(width)}  ${cells.map((cell) => cell.padStart(9)).join('')}`)
  }
  return `${lines.join('\n')}\n`
}
