/**
 * Cases of the matmuls that overlap with a collective, and of all_gather_rows. Operands are small whole
 * numbers, so that products and sums are exact in every dtype. Rows that a rank does not own hold NaN
 * where they are to be fetched, and poison where they must stay as they were.
 */

import { allGatherMatmul } from '../../lib/ops/all-gather-matmul.ts'
import { allGatherRows } from '../../lib/ops/all-gather-rows.ts'
import type { CollectiveForm } from '../../lib/ops/collective-form.ts'
import { copy } from '../../lib/ops/copy.ts'
import { matmulAllReduce } from '../../lib/ops/matmul-all-reduce.ts'
import { matmulReduceScatter } from '../../lib/ops/matmul-reduce-scatter.ts'
import { stall } from '../../lib/ops/stall.ts'
import type { ProgramBuilder } from '../../lib/program/builder.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { builderFor, type OpCase, randomIntegers, rowsStep } from './op-case.ts'
import * as reference from './reference.ts'

const LATE_MS = 15

interface OverlapCase {
  readonly rows: number
  readonly depth: number
  readonly n: number
  readonly dtype: Dtype
  readonly world: number
  readonly groups: number
  readonly form?: CollectiveForm
  readonly biasOn?: 'all' | 'rank0'
  /** y of a sum is f32 whatever the operands are. */
  readonly exactSum?: boolean
  /** This rank comes late. */
  readonly late?: number
  readonly parts?: readonly number[]
}

function caseOf(kind: string, c: OverlapCase, make: OpCase['make']): OpCase {
  const notes = [
    `${c.groups} groups`,
    ...(c.form ? [c.form] : []),
    ...(c.biasOn ? [`bias ${c.biasOn}`] : []),
    ...(c.exactSum ? ['f32 sums'] : []),
    ...(c.late === undefined ? [] : [`rank ${c.late} late`]),
    ...(c.parts ? ['in parts'] : []),
  ]
  const name = `${kind} [${c.rows}, ${c.depth}]·[${c.n}, ${c.depth}]ᵀ ${c.dtype}, ${c.world} ranks, `
  return { name: name + notes.join(', '), ...(c.parts ? { parts: c.parts } : {}), make }
}

function forRanks<T>(world: number, make: (rank: number) => T): T[] {
  return Array.from({ length: world }, (_, rank) => make(rank))
}

/** Written from docs/ops.md: groups end at tiles of 128 where every group can have one. */
function ownedRows(c: OverlapCase, rank: number): Set<number> {
  const owned = new Set<number>()
  const bounds = c.parts ?? [0, c.rows]
  for (let part = 0; part + 1 < bounds.length; part++) {
    const count = bounds[part + 1]! - bounds[part]!
    const tile = count >= 128 * c.groups ? 128 : 1
    const tiles = Math.ceil(count / tile)
    for (let group = 0; group < c.groups; group++) {
      const first = Math.min(count, tile * Math.floor((tiles * group) / c.groups))
      const size = Math.min(count, tile * Math.floor((tiles * (group + 1)) / c.groups)) - first
      const begin = first + Math.floor((size * rank) / c.world)
      const end = first + Math.floor((size * (rank + 1)) / c.world)
      for (let row = begin; row < end; row++) owned.add(bounds[part]! + row)
    }
  }
  return owned
}

/** `values` with NaN in all rows but those the rank owns. */
function ownedOnly(values: Float64Array, cols: number, c: OverlapCase, rank: number) {
  const owned = ownedRows(c, rank)
  return values.map((value, index) => (owned.has(Math.floor(index / cols)) ? value : Number.NaN))
}

/** The op's x, written by an op of the program: late on one rank where the case says so. */
function addInput(builder: ProgramBuilder, c: OverlapCase): number {
  const source = builder.arena('source', c.dtype, ['T', c.depth])
  const x = builder.arena('x', c.dtype, ['T', c.depth])
  if (c.late !== undefined) builder.add('late', stall({ x: source }, { rank: c.late, ms: LATE_MS }))
  builder.add('write', copy({ x: source, y: x }))
  return x
}

/** Weights and biases of each rank, and the program's buffers for them. */
function addWeights(builder: ProgramBuilder, c: OverlapCase) {
  const weight = builder.weight('weight', c.dtype, [c.n, c.depth], 'matmul')
  const bias = c.biasOn ? builder.weight('bias', 'f32', [c.n], 'plain') : undefined
  const weights = forRanks(c.world, (rank) => randomIntegers(rank + 11, c.n * c.depth, 1))
  const biases = forRanks(c.world, (rank) => randomIntegers(rank + 21, c.n, 3))
  const product = (x: Float64Array, rank: number) => {
    const biased = c.biasOn === 'all' || (c.biasOn === 'rank0' && rank === 0)
    return reference.matmul(x, weights[rank]!, c.depth, biased ? biases[rank] : undefined)
  }
  return { weight, bias, values: { weight: weights, bias: biases }, product }
}

function sumCase(c: OverlapCase, scatter: boolean): OpCase {
  return caseOf(scatter ? 'matmul_reduce_scatter' : 'matmul_all_reduce', c, () => {
    const builder = builderFor(c.rows, c.world)
    const x = addInput(builder, c)
    const { weight, bias, values, product } = addWeights(builder, c)
    const partial = builder.arena('partial', c.dtype, ['T', c.n])
    const y = builder.arena('y', c.exactSum ? 'f32' : c.dtype, ['T', c.n])
    const attrs = { groups: c.groups, form: c.form, bias_on: c.biasOn }
    const make = scatter ? matmulReduceScatter : matmulAllReduce
    builder.add('op', make({ x, weight, bias, partial, y }, attrs))
    const inputs = forRanks(c.world, (rank) => randomIntegers(rank, c.rows * c.depth, 2))
    const partials = inputs.map(product)
    const sums = reference.sumOverRanks(partials)
    return {
      builder,
      weights: values,
      inputs: { source: inputs },
      step: rowsStep(c.rows),
      expected: [
        { buffer: 'partial', values: partials, tolerance: 'exact' },
        {
          buffer: 'y',
          values: scatter ? forRanks(c.world, (rank) => ownedOnly(sums, c.n, c, rank)) : [sums],
          tolerance: 'exact',
        },
      ],
    }
  })
}

function gatherCase(c: OverlapCase, multiplied: boolean): OpCase {
  return caseOf(multiplied ? 'all_gather_matmul' : 'all_gather_rows', c, () => {
    const builder = builderFor(c.rows, c.world)
    const x = addInput(builder, c)
    const whole = randomIntegers(5, c.rows * c.depth, 2)
    const { groups, form } = c
    const common = {
      builder,
      inputs: { source: forRanks(c.world, (rank) => ownedOnly(whole, c.depth, c, rank)) },
      step: rowsStep(c.rows),
    }
    const gathered = { buffer: 'x', values: [whole], tolerance: 'exact' } as const
    if (!multiplied) {
      builder.add('op', allGatherRows({ x }, { groups, form }))
      return { ...common, expected: [gathered] }
    }
    const { weight, bias, values, product } = addWeights(builder, c)
    const y = builder.arena('y', c.dtype, ['T', c.n])
    builder.add('op', allGatherMatmul({ x, weight, bias, y }, { groups, form, bias_on: c.biasOn }))
    const products = forRanks(c.world, (rank) => product(whole, rank))
    return {
      ...common,
      weights: values,
      expected: [gathered, { buffer: 'y', values: products, tolerance: 'exact' }],
    }
  })
}

/** 37 rows: an empty part, parts with fewer rows than ranks and than groups. */
const PARTS = [0, 2, 2, 5, 37]

/** 24 terms of at most 2, 4 ranks and a bias: below 256, exact in bf16. Rows of whole 16 bytes. */
const SHAPES: readonly OverlapCase[] = [
  { rows: 1, depth: 8, n: 8, dtype: 'f32', world: 1, groups: 1, biasOn: 'all' },
  { rows: 1, depth: 24, n: 16, dtype: 'f32', world: 2, groups: 4, late: 0 },
  { rows: 3, depth: 24, n: 40, dtype: 'bf16', world: 4, groups: 1, exactSum: true },
  { rows: 31, depth: 24, n: 104, dtype: 'f16', world: 3, groups: 2, biasOn: 'rank0', late: 1 },
  { rows: 37, depth: 24, n: 24, dtype: 'bf16', world: 4, groups: 8, late: 2 },
  { rows: 37, depth: 24, n: 24, dtype: 'f32', world: 2, groups: 3, parts: PARTS, late: 1 },
  { rows: 37, depth: 24, n: 24, dtype: 'bf16', world: 4, groups: 2, parts: PARTS, exactSum: true },
  { rows: 300, depth: 24, n: 32, dtype: 'f32', world: 2, groups: 2, biasOn: 'all' },
]

export const OVERLAP_CASES: readonly OpCase[] = SHAPES.flatMap((c) => [
  sumCase(c, false),
  sumCase({ ...c, form: 'one_shot' }, false),
  sumCase({ ...c, form: 'two_shot' }, false),
  sumCase(c, true),
  gatherCase(c, false),
  gatherCase(c, true),
])
