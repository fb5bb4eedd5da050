/** What a simulated run is judged by: latencies, goodput, and how near it came to the device's bound. */

import type { RequestRecord } from './instance.ts'

export interface Targets {
  /** Time to the first token, and per token after it. */
  readonly ttftMs: number
  readonly tpotMs: number
}

export interface Percentiles {
  readonly p50: number
  readonly p90: number
  readonly p99: number
  readonly mean: number
}

export interface Metrics {
  readonly requests: number
  /** From the first arrival to the last end. */
  readonly durationMs: number
  readonly ttftMs: Percentiles
  /** Per output token after the first; requests of one token have none. */
  readonly tpotMs: Percentiles
  /** Longest wait between two tokens of a request. */
  readonly longestGapMs: Percentiles
  readonly totalMs: Percentiles
  readonly outputTokensPerSecond: number
  /** Prompt and output. */
  readonly tokensPerSecondPerDevice: number
  /** Requests that kept both targets, of all, and per second. */
  readonly goodShare: number
  readonly goodput: number
  /** Of NanoFlow's bound: tokens per second of a device that only multiplies. */
  readonly ofOptimal: number
}

export function percentilesOf(values: readonly number[]): Percentiles {
  if (values.length === 0)
    return { p50: Number.NaN, p90: Number.NaN, p99: Number.NaN, mean: Number.NaN }
  const sorted = Float64Array.from(values).sort()
  // Nearest rank.
  const at = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), mean }
}

function tpotOf(record: RequestRecord): number {
  return (record.finishedMs - record.firstTokenMs) / (record.outputTokens - 1)
}

export function summarize(
  records: readonly RequestRecord[],
  targets: Targets,
  devices: number,
  optimalTokensPerSecond: number,
): Metrics {
  const firstMs = records.reduce((first, record) => Math.min(first, record.arrivalMs), Infinity)
  const lastMs = records.reduce((last, record) => Math.max(last, record.finishedMs), 0)
  const seconds = Math.max(1e-9, (lastMs - firstMs) / 1e3)
  const several = records.filter(({ outputTokens }) => outputTokens > 1)
  const isGood = (record: RequestRecord) =>
    record.firstTokenMs - record.arrivalMs <= targets.ttftMs &&
    (record.outputTokens === 1 || tpotOf(record) <= targets.tpotMs)
  const good = records.filter(isGood).length
  const outputs = records.reduce((sum, { outputTokens }) => sum + outputTokens, 0)
  const prompts = records.reduce((sum, { promptTokens }) => sum + promptTokens, 0)
  const perDevice = (prompts + outputs) / seconds / devices
  return {
    requests: records.length,
    durationMs: 1e3 * seconds,
    ttftMs: percentilesOf(records.map((one) => one.firstTokenMs - one.arrivalMs)),
    tpotMs: percentilesOf(several.map(tpotOf)),
    longestGapMs: percentilesOf(several.map((one) => one.longestGapMs)),
    totalMs: percentilesOf(records.map((one) => one.finishedMs - one.arrivalMs)),
    outputTokensPerSecond: outputs / seconds,
    tokensPerSecondPerDevice: perDevice,
    goodShare: records.length === 0 ? 0 : good / records.length,
    goodput: good / seconds,
    ofOptimal: perDevice / optimalTokensPerSecond,
  }
}
