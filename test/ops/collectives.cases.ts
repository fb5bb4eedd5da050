/**
 * Cases of the collectives. Sums of small whole numbers are exact in every dtype, so those cases are
 * compared exactly. Some run with one rank late to write its partial, and some overwrite partials
 * as soon as they may: neither survives a missing barrier.
 */

import { allGather } from '../../lib/ops/all-gather.ts'
import { allReduce } from '../../lib/ops/all-reduce.ts'
import { allReduceRmsNorm } from '../../lib/ops/all-reduce-rms-norm.ts'
import type { CollectiveForm } from '../../lib/ops/collective-form.ts'
import { copy } from '../../lib/ops/copy.ts'
import { reduceScatter } from '../../lib/ops/reduce-scatter.ts'
import { stall } from '../../lib/ops/stall.ts'
import type { ProgramBuilder } from '../../lib/program/builder.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { ON_CPU } from '../support/device.ts'
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

/** The op's input, written by an op of the program: late on one rank where the case says so. */
function addInput(builder: ProgramBuilder, name: string, c: CollectiveCase): number {
  const source = builder.arena('source', c.dtype, ['T', c.cols])
  const input = builder.arena(name, c.dtype, ['T', c.cols])
  if (c.late !== undefined) builder.add('late', stall({ x: source }, { rank: c.late, ms: LATE_MS }))
  builder.add('write', copy({ x: source, y: input }))
  return input
}

function allReduceCase(c: CollectiveCase): OpCase {
  return {
    name: title('all_reduce', c),
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(c.rows, c.world)
      const x = addInput(builder, 'x', c)
      const y = builder.arena('y', c.dtype, ['T', c.cols])
      builder.add('op', allReduce({ x, y }))
      const partials = forRanks(c.world, (rank) => randomIntegers(rank, c.rows * c.cols, 9))
      const sums = reference.sumOverRanks(partials)
      return {
        builder,
        inputs: { source: partials },
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
      const x = addInput(builder, 'x', c)
      const y = builder.arena('y', c.dtype, ['T', c.cols])
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
        inputs: { source: partials },
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
      const x = addInput(builder, 'x', c)
      const y = builder.arena('y', c.dtype, ['T', c.cols * c.world])
      builder.add('op', allGather({ x, y }))
      const shards = forRanks(c.world, (rank) => randomValues(rank, c.rows * c.cols, c.dtype))
      const gathered = Array.from({ length: c.rows }, (_, row) =>
        shards.map((shard) => [...shard.subarray(row * c.cols, (row + 1) * c.cols)]),
      ).flat(2)
      return {
        builder,
        inputs: { source: shards },
        step: rowsStep(c.rows),
        expected: [{ buffer: 'y', values: [gathered], tolerance: 'exact' }],
      }
    },
  }
}

/** Residual rows that a rank need not keep current are not compared: they hold the old values. */
function fusedCase(c: CollectiveCase & { form?: CollectiveForm; post?: boolean }): OpCase {
  const form = c.form ?? 'auto'
  return {
    name: `${title('all_reduce_rms_norm', c)}, ${form}${c.post ? ', post_weight' : ''}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(c.rows, c.world)
      const partial = addInput(builder, 'partial', c)
      const residual = builder.arena('residual', c.dtype, ['T', c.cols])
      const weight = builder.weight('weight', 'f32', [c.cols], 'plain')
      const postWeight = c.post ? builder.weight('post', 'f32', [c.cols], 'plain') : undefined
      const y = builder.arena('y', c.dtype, ['T', c.cols])
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
        inputs: { source: partials, residual: [before] },
        step: rowsStep(c.rows),
        expected: [
          { buffer: 'y', values: [after.y], tolerance: 'close' },
          { buffer: 'residual', values: residuals, tolerance: 'close' },
        ],
      }
    },
  }
}

/**
 * Sums of sums: each round overwrites the partials of the one before, which peers may still read if
 * a barrier is missing. Whole numbers stay exact: 2 · 4^6 is below 2^24.
 */
function repeatedSumCase(rows: number, world: number): OpCase {
  return {
    name: `all_reduce over and over, ${rows} rows, ${world} ranks`,
    make() {
      const [cols, rounds] = [520, 6]
      const builder = builderFor(rows, world)
      const x = builder.arena('x', 'f32', ['T', cols])
      const y = builder.arena('y', 'f32', ['T', cols])
      for (let round = 0; round < rounds; round++) {
        builder.add(`sum${round}`, allReduce({ x, y }))
        builder.add(`copy${round}`, copy({ x: y, y: x }))
      }
      const partials = forRanks(world, (rank) => randomIntegers(rank, rows * cols, 2))
      const sums = reference.sumOverRanks(partials)
      const grown = sums.map((value) => value * world ** (rounds - 1))
      return {
        builder,
        inputs: { x: partials },
        step: rowsStep(rows),
        expected: [{ buffer: 'x', values: [grown], tolerance: 'exact' }],
      }
    },
  }
}

/** The same with norms: y of a round is every rank's partial of the next. */
function repeatedNormCase(rows: number, world: number, form: CollectiveForm): OpCase {
  return {
    name: `all_reduce_rms_norm over and over, ${rows} rows, ${world} ranks, ${form}`,
    make() {
      const [cols, rounds, eps] = [520, 6, 1e-5]
      const builder = builderFor(rows, world)
      const partial = builder.arena('partial', 'f32', ['T', cols])
      const residual = builder.arena('residual', 'f32', ['T', cols])
      const weight = builder.weight('weight', 'f32', [cols], 'plain')
      const y = builder.arena('y', 'f32', ['T', cols])
      for (let round = 0; round < rounds; round++) {
        builder.add(
          `norm${round}`,
          allReduceRmsNorm({ partial, residual, weight, y }, { eps, form }),
        )
        builder.add(`copy${round}`, copy({ x: y, y: partial }))
      }
      const partials = forRanks(world, (rank) => randomValues(rank, rows * cols))
      const before = randomValues(60, rows * cols)
      const weights = randomValues(61, cols)
      let sums = reference.sumOverRanks(partials)
      let after = reference.addRmsNorm(sums, before, weights, undefined, eps)
      for (let round = 1; round < rounds; round++) {
        sums = after.y.map((value) => value * world)
        after = reference.addRmsNorm(sums, after.residual, weights, undefined, eps)
      }
      return {
        builder,
        weights: { weight: [weights] },
        inputs: { partial: partials, residual: [before] },
        step: rowsStep(rows),
        expected: [{ buffer: 'y', values: [after.y], tolerance: 'close' }],
      }
    },
  }
}

/** 37 rows: an empty part, a part with fewer rows than ranks, parts above and below two-shot size. */
const PARTS = [0, 2, 2, 5, 37]

/** Collectives on CUDA take rows of whole 16 bytes: there the widths are the next ones that are. */
function widthOnDevice(shape: CollectiveCase): CollectiveCase {
  if (ON_CPU) return shape
  const columns = shape.dtype === 'f32' ? 4 : 8
  return { ...shape, cols: Math.ceil(shape.cols / columns) * columns }
}

const SHAPES: readonly CollectiveCase[] = (
  [
    { rows: 1, cols: 1, dtype: 'f32', world: 1 },
    { rows: 1, cols: 13, dtype: 'f32', world: 2 },
    { rows: 7, cols: 100, dtype: 'bf16', world: 4, late: 2 },
    { rows: 31, cols: 64, dtype: 'f16', world: 2 },
    { rows: 37, cols: 24, dtype: 'f32', world: 4, late: 0 },
    { rows: 37, cols: 24, dtype: 'bf16', world: 4, parts: PARTS },
    { rows: 37, cols: 13, dtype: 'f32', world: 2, parts: PARTS, late: 1 },
  ] as const
).map(widthOnDevice)

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
  repeatedSumCase(3, 4),
  repeatedSumCase(64, 4),
  repeatedNormCase(3, 4, 'one_shot'),
  repeatedNormCase(64, 2, 'one_shot'),
  repeatedNormCase(64, 4, 'two_shot'),
]
