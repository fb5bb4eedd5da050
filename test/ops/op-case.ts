/** What a case of an op says: a one-op program, what goes in, and what must come out. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { ProgramBuilder } from '../../lib/program/builder.ts'
import type { Dtype, ProgramLimits } from '../../lib/program/types.ts'
import { rounded } from '../support/elements.ts'
import type { WeightValues } from '../support/native.ts'
import { createRandom } from '../support/random.ts'
import type { Tolerance } from './tolerance.ts'

/** Values per rank; ranks beyond the list have the last entry. */
export type PerRank = readonly ArrayLike<number>[]

export interface Expected {
  readonly buffer: string
  /** First elements of the buffer; NaN where it must be left as it was. */
  readonly values: PerRank
  readonly tolerance: Tolerance
}

export interface OpCase {
  readonly name: string
  /** First row of each nano-batch, then the number of rows; one part when absent. */
  readonly parts?: readonly number[]
  /** Made when the case runs. */
  readonly make: () => CaseContents
}

export interface CaseContents {
  readonly builder: ProgramBuilder
  readonly weights?: WeightValues
  readonly inputs: Readonly<Record<string, PerRank>>
  /** Sections of the step; partBounds is added. */
  readonly step: ReadonlyMap<number, ArrayLike<number>>
  readonly expected: readonly Expected[]
}

/** Rows beyond those of a case's step, so that a kernel that writes too far is seen. */
const SPARE_ROWS = 3

export function limitsFor(rows: number, more: Partial<ProgramLimits> = {}): ProgramLimits {
  return {
    maxTokens: rows + SPARE_ROWS,
    maxRows: rows + SPARE_ROWS,
    maxSeqs: 8,
    numBlocks: 0,
    blockSize: 16,
    maxBlocksPerSeq: 0,
    vocabSize: 1000,
    numSlots: 8,
    ...more,
  }
}

export function builderFor(rows: number, world = 1, more: Partial<ProgramLimits> = {}) {
  return new ProgramBuilder({ name: 'case', world, tp: world, limits: limitsFor(rows, more) })
}

/** A step of `rows` tokens at ascending positions, for programs without a KV cache. */
export function rowsStep(rows: number): Map<number, ArrayLike<number>> {
  return new Map([
    [STEP_SECTION.tokens, new Array<number>(rows).fill(0)],
    [STEP_SECTION.positions, Array.from({ length: rows }, (_, row) => row)],
  ])
}

/** Random values with a bell-shaped distribution, exact in `dtype`. */
export function randomValues(
  seed: number,
  count: number,
  dtype: Dtype = 'f32',
  scale = 1,
): Float64Array {
  const random = createRandom(seed)
  const values = Float64Array.from({ length: count }, () => {
    const sum = random.next() + random.next() + random.next() + random.next()
    return (sum - 2) * Math.sqrt(3) * scale
  })
  return rounded(values, dtype)
}

/** Whole numbers in [-limit, limit]: their sums are exact in every float dtype. */
export function randomIntegers(seed: number, count: number, limit: number): Float64Array {
  const random = createRandom(seed)
  return Float64Array.from({ length: count }, () => random.int(-limit, limit))
}

export const ACT_DTYPES: readonly Dtype[] = ['f32', 'bf16', 'f16']
