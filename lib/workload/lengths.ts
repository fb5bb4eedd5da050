/**
 * Workloads by the published statistics of their lengths. A length is drawn by the inverse CDF in log
 * space: the logarithms are normal, through the published median and 90th percentile.
 */

import { normalQuantile, type Random } from './random.ts'

export interface LengthStatistics {
  /** Tokens: half of all requests have fewer, and nine in ten. */
  readonly p50: number
  readonly p90: number
}

export interface LengthTrace {
  readonly name: string
  readonly summary: string
  readonly promptTokens: LengthStatistics
  readonly outputTokens: LengthStatistics
}

/** Sources: AzurePublicDataset 2023 (conversation), LMSYS-Chat-1M, ShareGPT, as their users report them. */
export const LENGTH_TRACES: readonly LengthTrace[] = [
  {
    name: 'azure-conversation',
    summary: 'Azure LLM inference, conversation: long prompts, short answers',
    promptTokens: { p50: 1020, p90: 2735 },
    outputTokens: { p50: 129, p90: 424 },
  },
  {
    name: 'lmsys',
    summary: 'LMSYS-Chat: short prompts',
    promptTokens: { p50: 28, p90: 302 },
    outputTokens: { p50: 140, p90: 512 },
  },
  {
    name: 'sharegpt',
    summary: 'ShareGPT: answers longer than their prompts',
    promptTokens: { p50: 36, p90: 829 },
    outputTokens: { p50: 280, p90: 683 },
  },
]

const Z_90 = normalQuantile(0.9)

/** The length, in tokens, that a share `u` of all requests stay below; 0 < u < 1. */
export function lengthQuantile({ p50, p90 }: LengthStatistics, u: number): number {
  return Math.exp(Math.log(p50) + (normalQuantile(u) / Z_90) * Math.log(p90 / p50))
}

/** A whole number of tokens from 1 to `maxTokens`. */
export function drawLength(
  random: Random,
  statistics: LengthStatistics,
  maxTokens: number,
): number {
  const length = Math.round(lengthQuantile(statistics, random.uniform()))
  return Math.min(maxTokens, Math.max(1, length))
}
