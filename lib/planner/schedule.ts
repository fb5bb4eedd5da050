/**
 * Schedule: how a program is overlapped, and the serial one that does nothing of the kind. What the
 * planner chooses, a tune file stores, `nanoweave plan` prints and the engine loads.
 */

import { PASSES } from '../program/passes/index.ts'
import type { LaneMode } from '../program/passes/lanes.ts'
import type { MatmulOverlap } from '../program/passes/overlap-matmul.ts'
import type { Program } from '../program/types.ts'
import type { LaneShares } from './timeline.ts'

export interface Schedule {
  /** Nano-batches, 1..4. */
  readonly parts: number
  /** Groups by which a part trails the one before it. */
  readonly stagger: number
  readonly lanes: LaneMode
  /** Where parts end, as shares of the rows: [parts], ascending to 1. */
  readonly splits: readonly number[]
  readonly shares: LaneShares
  /** Sums that overlap with the matmul before them; absent: none. */
  readonly overlap?: MatmulOverlap | undefined
}

export const SERIAL: Schedule = {
  parts: 1,
  stagger: 0,
  lanes: 'all',
  splits: [1],
  shares: { network: 1, memory: 1 },
}

/** Parts end at multiples of it, so that no tile of a matmul is cut. */
export const ROW_TILE = 128

/** Part boundaries of a step, [parts + 1]: the splits, rounded to tiles where there are enough rows. */
export function partBounds(schedule: Schedule, numTokens: number): number[] {
  return Array.from({ length: schedule.parts + 1 }, (_, i) => partBound(schedule, numTokens, i))
}

/** First row of part `index`, 0..parts. */
export function partBound(schedule: Schedule, numTokens: number, index: number): number {
  const { parts, splits } = schedule
  if (index === 0) return 0
  if (index === parts) return numTokens
  const exact = splits[index - 1]! * numTokens
  const rounded = numTokens >= parts * ROW_TILE ? ROW_TILE * Math.round(exact / ROW_TILE) : exact
  return Math.min(numTokens, Math.round(rounded))
}

/** The passes a schedule asks for, on a serial program; no offsets are planned. */
export function applySchedule(program: Program, schedule: Schedule): Program {
  return PASSES.reduce((current, pass) => pass.run(current, schedule), program)
}

const OVERLAPS: Readonly<Record<MatmulOverlap['form'], string>> = {
  all_reduce: 'sums in the matmul before them',
  reduce_scatter: 'sums scattered by the matmul before them, gathered by the one after',
}

const percent = (share: number) => `${Math.round(100 * share)} %`

/** Words for people. */
export function describeSchedule(schedule: Schedule): string {
  const { parts, shares, overlap } = schedule
  const fused =
    overlap &&
    `${OVERLAPS[overlap.form]}, in ${overlap.groups} row groups; ` +
      `collectives hold ${percent(shares.network)} of the device`
  if (parts === 1) return fused ?? 'serial'
  return [fused, describeParts(schedule)].filter((text) => text !== undefined).join('; ')
}

function describeParts({ parts, stagger, lanes, splits, shares }: Schedule): string {
  const ends = splits.slice(0, -1).map(percent).join(', ')
  const beside = {
    all: 'matmuls, memory-bound ops and collectives side by side',
    attention: 'attention and collectives beside the rest',
    network: 'collectives beside the rest',
  }[lanes]
  const memory = lanes === 'network' ? '' : `, attention ${percent(shares.memory)}`
  return (
    `${parts} nano-batches cut at ${ends}, each ${stagger} groups behind the one before, ${beside}; ` +
    `collectives hold ${percent(shares.network)} of the device${memory}`
  )
}
