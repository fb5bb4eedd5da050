/** Steps over a paged KV cache: sequences laid out on shuffled blocks, and the cache's contents. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { createRandom } from '../support/random.ts'
import { randomValues } from './op-case.ts'

export interface SequenceRows {
  /** Rows of the step are positions [start, end). */
  readonly start: number
  readonly end: number
  /** Positions, as rows of the sequence, that are padding. */
  readonly padding?: readonly number[]
}

export interface KvLayout {
  readonly numTokens: number
  readonly numBlocks: number
  readonly blockSize: number
  readonly maxBlocksPerSeq: number
  readonly sections: ReadonlyMap<number, ArrayLike<number>>
  /** KV slot of a position of a sequence. */
  readonly slotOf: (sequence: number, position: number) => number
  /** Sequence, position and whether it is padding, of each row. */
  readonly rows: readonly {
    readonly sequence: number
    readonly position: number
    readonly padding: boolean
  }[]
}

/** Some blocks stay unused; those of a sequence are neither adjacent nor ascending. */
export function layOut(sequences: readonly SequenceRows[], blockSize: number, seed = 1): KvLayout {
  const counts = sequences.map(({ end }) => Math.ceil(end / blockSize))
  const numBlocks = counts.reduce((sum, count) => sum + count, 2)
  const width = Math.max(...counts)
  const random = createRandom(seed)
  const free = Array.from({ length: numBlocks }, (_, block) => block)
  for (let i = numBlocks - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[free[i], free[j]] = [free[j]!, free[i]!]
  }
  const tables = counts.map((count) => free.splice(0, count))
  const slotOf = (sequence: number, position: number) =>
    tables[sequence]![Math.floor(position / blockSize)]! * blockSize + (position % blockSize)
  const rows = sequences.flatMap(({ start, end, padding = [] }, sequence) =>
    Array.from({ length: end - start }, (_, i) => ({
      sequence,
      position: start + i,
      padding: padding.includes(start + i),
    })),
  )
  const starts = [0]
  for (const { start, end } of sequences) starts.push(starts.at(-1)! + end - start)
  const sections = new Map<number, ArrayLike<number>>([
    [STEP_SECTION.tokens, rows.map(() => 0)],
    [STEP_SECTION.positions, rows.map(({ position }) => position)],
    [
      STEP_SECTION.kvSlots,
      rows.map(({ sequence, position, padding }) => (padding ? -1 : slotOf(sequence, position))),
    ],
    [STEP_SECTION.seqStarts, starts],
    [STEP_SECTION.seqLens, sequences.map(({ end }) => end)],
    [
      STEP_SECTION.blockTables,
      tables.flatMap((table) => [...table, ...new Array<number>(width - table.length).fill(-1)]),
    ],
  ])
  return {
    numTokens: rows.length,
    numBlocks,
    blockSize,
    maxBlocksPerSeq: width,
    sections,
    slotOf,
    rows,
  }
}

export interface KvShape {
  readonly kvHeads: number
  readonly headDim: number
  readonly dtype: Dtype
}

/** Index in a KV buffer of element 0 of a slot's key (which 0) or value (which 1). */
export function kvIndex(
  layout: KvLayout,
  shape: KvShape,
  slot: number,
  which: 0 | 1,
  head: number,
): number {
  const block = Math.floor(slot / layout.blockSize)
  const offset = slot % layout.blockSize
  return (((block * 2 + which) * shape.kvHeads + head) * layout.blockSize + offset) * shape.headDim
}

/** The whole KV buffer, NaN where nothing is stored, and each sequence's keys and values. */
export interface KvContents {
  readonly buffer: Float64Array
  /** [sequence][head]: [context, headDim] */
  readonly keys: readonly (readonly Float64Array[])[]
  readonly values: readonly (readonly Float64Array[])[]
}

/**
 * Every position of every sequence filled. A position's contents depend on the sequence's seed and
 * the position alone, so the same sequence can be laid out in several ways.
 */
export function fillKv(
  layout: KvLayout,
  shape: KvShape,
  sequences: readonly SequenceRows[],
  seeds: readonly number[],
): KvContents {
  const { kvHeads, headDim, dtype } = shape
  const buffer = new Float64Array(layout.numBlocks * 2 * kvHeads * layout.blockSize * headDim).fill(
    Number.NaN,
  )
  const fill = (sequence: number, which: 0 | 1) =>
    Array.from({ length: kvHeads }, (_, head) => {
      const { end } = sequences[sequence]!
      const rows = new Float64Array(end * headDim)
      for (let position = 0; position < end; position++) {
        const seed = ((seeds[sequence]! * 5003 + position) * 2 + which) * 64 + head
        const row = randomValues(seed, headDim, dtype)
        rows.set(row, position * headDim)
        const slot = layout.slotOf(sequence, position)
        buffer.set(row, kvIndex(layout, shape, slot, which, head))
      }
      return rows
    })
  return {
    buffer,
    keys: sequences.map((_, sequence) => fill(sequence, 0)),
    values: sequences.map((_, sequence) => fill(sequence, 1)),
  }
}
