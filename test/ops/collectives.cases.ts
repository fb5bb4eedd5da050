/**
 * Cases of the collectives. Sums of small whole numbers are exact in every dtype, so those cases are
 * compared exactly. Some run with one rank late, which a missing barrier does not survive.
 */

import { addRmsNorm } from '../../lib/ops/add-rms-norm.ts'
import { allGather } from '../../lib/ops/all-gather.ts'
import { allReduce } from '../../lib/ops/all-reduce.ts'
import { type AllReduceForm, allReduceRmsNorm } from '../../lib/ops/all-reduce-rms-norm.ts'
import { reduceScatter } from '../../lib/ops/reduce-scatter.ts'
import { stall } from '../../lib/ops/stall.ts'
import type { Dtype } from '../../lib/program/types.ts'
import {
  ACT_DTYPES,
  builderFor,
  type OpCase,
  randomIntegers,
  randomValues,
  rowsStep,
} from './op-case.ts'
import * as reference from './reference.ts'

const LATE_MS = 15

interface CollectiveCase {
  readonly rows: number
  readonly cols: number
  readonly dtype: Dtype
  readonly world: number
  /** This rank comes late. */
  readonly late?: number
  readonly parts?: readonly number[]
}

function title(kind: string, c: CollectiveCase): string {
  return (
    `${kind} [${c.rows}, ${c.cols}] ${c.dtype}, ${c.world} ranks` +
    `${c.late === undefined ? '' : `, rank ${c.late} late`}${c.parts ? ' in parts' : ''}`
  )
}

function forRanks<T>(world: number, make: (rank: number) => T): T[] {
  return Array.from({ length: world }, (_, rank) => make(rank))
}

/** Rows of a part that `rank` owns: as even as can be, in order. */
function ownedRows(rows: number, world: number, rank: number): [number, number] {
  return [Math.floor((rows * rank) / world), Math.floor((rows * (rank + 1)) / world)]
}

function allReduceCase(c: CollectiveCase): OpCase {
  return {
    name: title('all_reduce', c),
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(c.rows, c.world)
      const x = builder.arena('x', c.dtype, ['T', c.cols])
      const y = builder.arena('y', c.dtype, ['T', c.cols])
      if (c.late !== undefined) builder.add('late', stall({ x }, { rank: c.late, ms: LATE_MS }))
      builder.add('op', allReduce({ x, y }))
      const partials = forRanks(c.world, (rank) => randomIntegers(rank, c.rows * c.cols, 9))
      const sums = reference.sumOverRanks(partials)
      return {
        builder,
        inputs: { x: partials },
        step: rowsStep(c.rows),
        expected: [{ buffer: 'y', values: [sums], tolerance: 'exact' }],
      }
    },
  }
}

/** A rank writes the rows it owns of every part, and leaves the others alone. */
function reduceScatterCase(c: CollectiveCase): OpCase {
  return {
    name: title('reduce_scatter', c),
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(c.rows, c.world)
      const x = builder.arena('x', c.dtype, ['T', c.cols])
      const y = builder.arena('y', c.dtype, ['T', c.cols])
      if (c.late !== undefined) builder.add('late', stall({ x }, { rank: c.late, ms: LATE_MS }))
      builder.add('op', reduceScatter({ x, y }))
      const partials = forRanks(c.world, (rank) => randomIntegers(rank, c.rows * c.cols, 9))
      const sums = reference.sumOverRanks(partials)
      const bounds = c.parts ?? [0, c.rows]
      const values = forRanks(c.world, (rank) => {
        const own = new Float64Array(sums.length).fill(Number.NaN)
        for (let part = 0; part + 1 < bounds.length; part++) {
          const first = bounds[part]!
          const [begin, end] = ownedRows(bounds[part + 1]! - first, c.world, rank)
          const [from, to] = [(first + begin) * c.cols, (first + end) * c.cols]
          own.set(sums.subarray(from, to), from)
        }
        return own
      })
      return {
        builder,
        inputs: { x: partials },
        step: rowsStep(c.rows),
        expected: [{ buffer: 'y', values, tolerance: 'exact' }],
      }
    },
  }
}

function allGatherCase(c: CollectiveCase): OpCase {
  return {
    name: title('all_gather', c),
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(c.rows, c.world)
      const x = builder.arena('x', c.dtype, ['T', c.cols])
      const y = builder.arena('y', c.dtype, ['T', c.cols * c.world])
      if (c.late !== undefined) builder.add('late', stall({ x }, { rank: c.late, ms: LATE_MS }))
      builder.add('op', allGather({ x, y }))
      const shards = forRanks(c.world, (rank) => randomValues(rank, c.rows * c.cols, c.dtype))
      const gathered = Array.from({ length: c.rows }, (_, row) =>
        shards.map((shard) => [...shard.subarray(row * c.cols, (row + 1) * c.cols)]),
      ).flat(2)
      return {
        builder,
        inputs: { x: shards },
        step: rowsStep(c.rows),
        expected: [{ buffer: 'y', values: [gathered], tolerance: 'exact' }],
      }
    },
  }
}

/** Residual rows that a rank need not keep current are not compared: they hold the old values. */
function fusedCase(c: CollectiveCase & { form?: AllReduceForm; post?: boolean }): OpCase {
  const form = c.form ?? 'auto'
  return {
    name: `${title('all_reduce_rms_norm', c)}, ${form}${c.post ? ', post_weight' : ''}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(c.rows, c.world)
      const partial = builder.arena('partial', c.dtype, ['T', c.cols])
      const residual = builder.arena('residual', c.dtype, ['T', c.cols])
      const weight = builder.weight('weight', 'f32', [c.cols], 'plain')
      const postWeight = c.post ? builder.weight('post', 'f32', [c.cols], 'plain') : undefined
      const y = builder.arena('y', c.dtype, ['T', c.cols])
      if (c.late !== undefined) {
        builder.add('late', stall({ x: partial }, { rank: c.late, ms: LATE_MS }))
      }
      const eps = 1e-5
      builder.add(
        'op',
        allReduceRmsNorm({ partial, residual, weight, postWeight, y }, { eps, form: c.form }),
      )
      const partials = forRanks(c.world, (rank) => randomValues(rank, c.rows * c.cols, c.dtype))
      const before = randomValues(50, c.rows * c.cols, c.dtype)
      const [weights, posts] = [randomValues(51, c.cols), randomValues(52, c.cols)]
      const sums = reference.sumOverRanks(partials)
      const after = reference.addRmsNorm(sums, before, weights, c.post ? posts : undefined, eps)
      const bounds = c.parts ?? [0, c.rows]
      const residuals = forRanks(c.world, (rank) => {
        const values = Float64Array.from(before)
        for (let part = 0; part + 1 < bounds.length; part++) {
          const first = bounds[part]!
          const rows = bounds[part + 1]! - first
          const sharded = form === 'auto' ? c.world > 1 && rows >= 8 * c.world : form === 'two_shot'
          const [begin, end] = sharded ? ownedRows(rows, c.world, rank) : [0, rows]
          const [from, to] = [(first + begin) * c.cols, (first + end) * c.cols]
          values.set(after.residual.subarray(from, to), from)
        }
        return values
      })
      return {
        builder,
        weights: { weight: [weights], post: [posts] },
        inputs: { partial: partials, residual: [before] },
        step: rowsStep(c.rows),
        expected: [
          { buffer: 'y', values: [after.y], tolerance: 'close' },
          { buffer: 'residual', values: residuals, tolerance: 'close' },
        ],
      }
    },
  }
}

/** The add_rms_norm that follows a plain all_reduce sees its sums: two collective steps in a row. */
function chainedCase(world: number): OpCase {
  return {
    name: `all_reduce, add_rms_norm, all_reduce again, ${world} ranks`,
    make() {
      const [rows, cols, eps] = [9, 40, 1e-5]
      const builder = builderFor(rows, world)
      const x = builder.arena('x', 'f32', ['T', cols])
      const sum = builder.arena('sum', 'f32', ['T', cols])
      const residual = builder.arena('residual', 'f32', ['T', cols])
      const weight = builder.weight('weight', 'f32', [cols], 'plain')
      const y = builder.arena('y', 'f32', ['T', cols])
      const z = builder.arena('z', 'f32', ['T', cols])
      builder.add('reduce', allReduce({ x, y: sum }))
      builder.add('norm', addRmsNorm({ x: sum, residual, weight, y }, { eps }))
      builder.add('again', allReduce({ x: y, y: z }))
      const partials = forRanks(world, (rank) => randomValues(rank, rows * cols))
      const before = randomValues(60, rows * cols)
      const weights = randomValues(61, cols)
      const sums = reference.sumOverRanks(partials)
      const after = reference.addRmsNorm(sums, before, weights, undefined, eps)
      return {
        builder,
        weights: { weight: [weights] },
        inputs: { x: partials, residual: [before] },
        step: rowsStep(rows),
        expected: [
          { buffer: 'z', values: [after.y.map((value) => value * world)], tolerance: 'close' },
        ],
      }
    },
  }
}

/** 37 rows: an empty part, a part with fewer rows than ranks, parts above and below two-shot size. */
const PARTS = [0, 2, 2, 5, 37]

const SHAPES: readonly CollectiveCase[] = [
  { rows: 1, cols: 1, dtype: 'f32', world: 1 },
  { rows: 1, cols: 13, dtype: 'f32', world: 2 },
  { rows: 7, cols: 100, dtype: 'bf16', world: 4, late: 2 },
  { rows: 31, cols: 64, dtype: 'f16', world: 2 },
  { rows: 37, cols: 24, dtype: 'f32', world: 4, late: 0 },
  { rows: 37, cols: 24, dtype: 'bf16', world: 4, parts: PARTS },
  { rows: 37, cols: 13, dtype: 'f32', world: 2, parts: PARTS, late: 1 },
]

export const COLLECTIVE_CASES: readonly OpCase[] = [
  ...SHAPES.flatMap((c) => [
    allReduceCase(c),
    reduceScatterCase(c),
    allGatherCase(c),
    fusedCase(c),
    fusedCase({ ...c, form: 'one_shot', post: true }),
    fusedCase({ ...c, form: 'two_shot' }),
  ]),
  ...ACT_DTYPES.map((dtype) =>
    fusedCase({ rows: 40, cols: 896, dtype, world: 4, form: 'two_shot', post: true }),
  ),
  chainedCase(1),
  chainedCase(4),
]
