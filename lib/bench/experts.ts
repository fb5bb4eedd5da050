/**
 * What the suites of routed experts share: skewed choices of experts, and the program of a block of
 * experts between dispatch and combine, each rank with tokens of its own.
 */

import { moeCombine } from '../ops/moe-combine.ts'
import { moeDispatch } from '../ops/moe-dispatch.ts'
import type { ProgramBuilder } from '../program/builder.ts'
import { makeRandom } from './checkpoint.ts'
import type { BenchDtype } from './elements.ts'

/**
 * How popular experts are: all alike; Zipf's law (the n-th with a share of 1 / n); or one expert that
 * every token chooses, the others alike.
 */
export const SKEWS = ['uniform', 'zipf', 'hot'] as const
export type Skew = (typeof SKEWS)[number]

/** Popularity of each expert, of any scale. Popular ones are spread over the numbers. */
export function popularity(skew: Skew, experts: number): number[] {
  if (skew !== 'zipf') return new Array<number>(experts).fill(1)
  const order = Array.from({ length: experts }, (_, i) => i)
  const random = makeRandom(17)
  for (let i = experts - 1; i > 0; i--) {
    const j = random() % (i + 1)
    ;[order[i], order[j]] = [order[j]!, order[i]!]
  }
  return order.map((place) => 1 / (place + 1))
}

/**
 * [tokens, choices] different experts, drawn by popularity without replacement: the largest keys
 * log(u) / weight (Efraimidis and Spirakis, 2006).
 */
export function drawChoices(
  skew: Skew,
  { tokens, experts, choices }: { tokens: number; experts: number; choices: number },
  seed: number,
): Int32Array {
  const weights = popularity(skew, experts)
  const random = makeRandom(seed)
  const ids = new Int32Array(tokens * choices)
  for (let token = 0; token < tokens; token++) {
    const keys = weights.map((weight) => Math.log((random() + 1) / 2 ** 32) / weight)
    if (skew === 'hot') keys[0] = 1
    const order = keys.map((_, expert) => expert).sort((a, b) => keys[b]! - keys[a]!)
    ids.set(order.slice(0, choices), token * choices)
  }
  return ids
}

/** Choices of each expert. */
export function countChoices(ids: readonly Int32Array[], experts: number): number[] {
  const counts = new Array<number>(experts).fill(0)
  for (const group of ids) for (const id of group) counts[id]!++
  return counts
}

/** Sums of `per` neighbours. */
export function sumsOf(loads: readonly number[], per: number): number[] {
  return Array.from({ length: Math.ceil(loads.length / per) }, (_, i) =>
    loads.slice(i * per, (i + 1) * per).reduce((a, b) => a + b, 0),
  )
}

export interface ExpertBlockShape {
  /** Of each rank. */
  readonly tokens: number
  readonly hidden: number
  /** Experts, or slots where they are placed. */
  readonly targets: number
  readonly choices: number
  readonly ranks: number
  readonly dtype: BenchDtype
}

export interface ExpertBuffers {
  readonly hidden: number
  readonly rxIds: number
  readonly counts: number
  readonly rows: number
  readonly grouped: number
  readonly offsets: number
}

/** Rows that a rank can receive, once per choice. */
export function mostGroupedRows({ ranks, tokens, choices }: ExpertBlockShape): number {
  return ranks * tokens * choices
}

/** What dispatch writes; `offsets`, whose size follows the targets, is declared by the caller. */
export function declareReceived(
  builder: ProgramBuilder,
  shape: ExpertBlockShape,
): Omit<ExpertBuffers, 'offsets'> {
  const { tokens, hidden, choices, ranks, dtype } = shape
  const received = ranks * tokens
  return {
    hidden: builder.arena('hidden', dtype, [received, hidden]),
    rxIds: builder.arena('rx_ids', 'i32', [received, choices]),
    counts: builder.arena('counts', 'i32', [1, ranks]),
    rows: builder.arena('rows', 'i32', [received, choices]),
    grouped: builder.arena('grouped', dtype, [mostGroupedRows(shape), hidden]),
  }
}

/** dispatch, whatever `experts` adds (it returns the buffer of outputs), combine. */
export function addExpertBlock(
  builder: ProgramBuilder,
  label: string,
  operands: { x: number; ids: number; weights: number; y: number } & ExpertBuffers,
  { targets, ranks }: ExpertBlockShape,
  experts: (grouped: number) => number,
): void {
  const { x, ids, weights, y, ...buffers } = operands
  const attrs = { experts: targets, ep: ranks }
  builder.add(`dispatch.${label}`, moeDispatch({ x, ids, ...buffers }, attrs))
  const expertOut = experts(buffers.grouped)
  const { rows } = buffers
  builder.add(`combine.${label}`, moeCombine({ expertOut, rows, ids, weights, y }, attrs))
}

export function bytesOf(values: Int32Array | Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}
