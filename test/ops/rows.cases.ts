/** Cases of the ops that treat every row alone: norms, gated activations, copies, look-ups. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { addRmsNorm } from '../../lib/ops/add-rms-norm.ts'
import { copy } from '../../lib/ops/copy.ts'
import { embed } from '../../lib/ops/embed.ts'
import { gatherRows } from '../../lib/ops/gather-rows.ts'
import { geluMul } from '../../lib/ops/gelu-mul.ts'
import { rmsNorm } from '../../lib/ops/rms-norm.ts'
import { siluMul } from '../../lib/ops/silu-mul.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { createRandom } from '../support/random.ts'
import { ACT_DTYPES, builderFor, type OpCase, randomValues, rowsStep } from './op-case.ts'
import * as reference from './reference.ts'

/** Rows × columns: one, primes, off the vector width, and more rows than one thread takes. */
const SHAPES: readonly (readonly [number, number])[] = [
  [1, 1],
  [1, 896],
  [7, 13],
  [33, 100],
  [130, 896],
]
/** Parts of 33 rows with an empty one in the middle. */
const PARTS = [0, 5, 5, 33]
const EPS = 1e-5

function rmsNormCase(rows: number, cols: number, dtype: Dtype, parts?: readonly number[]): OpCase {
  return {
    name: `rms_norm [${rows}, ${cols}] ${dtype}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const builder = builderFor(rows)
      const x = builder.arena('x', dtype, ['T', cols])
      const weight = builder.weight('weight', 'f32', [cols], 'plain')
      const y = builder.arena('y', dtype, ['T', cols])
      builder.add('op', rmsNorm({ x, weight, y }, { eps: EPS }))
      const values = randomValues(1, rows * cols, dtype, 3)
      const weights = randomValues(2, cols)
      return {
        builder,
        weights: { weight: [weights] },
        inputs: { x: [values] },
        step: rowsStep(rows),
        expected: [
          { buffer: 'y', values: [reference.rmsNorm(values, weights, EPS)], tolerance: 'close' },
        ],
      }
    },
  }
}

function addRmsNormCase(
  rows: number,
  cols: number,
  dtype: Dtype,
  post: boolean,
  parts?: readonly number[],
): OpCase {
  return {
    name: `add_rms_norm [${rows}, ${cols}] ${dtype}${post ? ' post_weight' : ''}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const builder = builderFor(rows)
      const x = builder.arena('x', dtype, ['T', cols])
      const residual = builder.arena('residual', dtype, ['T', cols])
      const weight = builder.weight('weight', 'f32', [cols], 'plain')
      const postWeight = post ? builder.weight('post', 'f32', [cols], 'plain') : undefined
      const y = builder.arena('y', dtype, ['T', cols])
      builder.add('op', addRmsNorm({ x, residual, weight, postWeight, y }, { eps: EPS }))
      const values = randomValues(1, rows * cols, dtype)
      const before = randomValues(2, rows * cols, dtype, 2)
      const [weights, posts] = [randomValues(3, cols), randomValues(4, cols)]
      const after = reference.addRmsNorm(values, before, weights, post ? posts : undefined, EPS)
      return {
        builder,
        weights: { weight: [weights], post: [posts] },
        inputs: { x: [values], residual: [before] },
        step: rowsStep(rows),
        expected: [
          { buffer: 'y', values: [after.y], tolerance: 'close' },
          { buffer: 'residual', values: [after.residual], tolerance: 'close' },
        ],
      }
    },
  }
}

function gatedCase(
  kind: 'silu_mul' | 'gelu_mul',
  rows: number,
  cols: number,
  dtype: Dtype,
  parts?: readonly number[],
): OpCase {
  return {
    name: `${kind} [${rows}, ${cols}] ${dtype}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const builder = builderFor(rows)
      const gateUp = builder.arena('gate_up', dtype, ['T', 2 * cols])
      const y = builder.arena('y', dtype, ['T', cols])
      builder.add('op', (kind === 'silu_mul' ? siluMul : geluMul)({ gateUp, y }))
      const values = randomValues(1, rows * 2 * cols, dtype, 3)
      // Where the exponential of the activation over- and underflows.
      const extremes = [100, -100, 30, -30, 0, 1e-6]
      extremes.slice(0, cols).forEach((value, i) => {
        values[i] = value
      })
      const exact = kind === 'silu_mul' ? reference.siluMul : reference.geluMul
      return {
        builder,
        inputs: { gate_up: [values] },
        step: rowsStep(rows),
        expected: [{ buffer: 'y', values: [exact(values, cols)], tolerance: 'close' }],
      }
    },
  }
}

function copyCase(rows: number, cols: number, dtype: Dtype, parts?: readonly number[]): OpCase {
  return {
    name: `copy [${rows}, ${cols}] ${dtype}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const builder = builderFor(rows)
      const x = builder.arena('x', dtype, ['T', cols])
      const y = builder.arena('y', dtype, ['T', cols])
      builder.add('op', copy({ x, y }))
      const values = randomValues(1, rows * cols, dtype)
      return {
        builder,
        inputs: { x: [values] },
        step: rowsStep(rows),
        expected: [{ buffer: 'y', values: [values], tolerance: 'exact' }],
      }
    },
  }
}

function gatherCase(tokens: number, cols: number, dtype: Dtype, picks: readonly number[]): OpCase {
  return {
    name: `gather_rows ${picks.length} of [${tokens}, ${cols}] ${dtype}`,
    make() {
      const builder = builderFor(tokens)
      const x = builder.arena('x', dtype, ['T', cols])
      const y = builder.arena('y', dtype, ['R', cols])
      builder.add('op', gatherRows({ x, y }))
      const values = randomValues(1, tokens * cols, dtype)
      const step = rowsStep(tokens)
      step.set(
        STEP_SECTION.rows,
        picks.flatMap((row) => [row, -1, -1, 0]),
      )
      const gathered = picks.flatMap((row) => [...values.subarray(row * cols, (row + 1) * cols)])
      return {
        builder,
        inputs: { x: [values] },
        step,
        expected: [{ buffer: 'y', values: [gathered], tolerance: 'exact' }],
      }
    },
  }
}

/** Rank r holds ids [r·shard, (r + 1)·shard); other ids give zero rows. */
function embedCase(
  tokens: number,
  hidden: number,
  table: Dtype,
  dtype: Dtype,
  world: number,
  scale?: number,
  parts?: readonly number[],
): OpCase {
  return {
    name: `embed ${tokens} of ${table} to ${dtype}, ${world} ranks${scale ? ' scaled' : ''}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const vocab = 96
      const shard = vocab / world
      const builder = builderFor(tokens, world, { vocabSize: vocab })
      const weight = builder.weight('table', table, [shard, hidden], 'matmul')
      const x = builder.arena('x', dtype, ['T', hidden])
      builder.add('op', embed({ table: weight, x }, { scale }))
      const random = createRandom(7)
      const ids = Array.from({ length: tokens }, () => random.int(0, vocab - 1))
      const shards = Array.from({ length: world }, (_, rank) =>
        randomValues(rank + 1, shard * hidden, table),
      )
      const values = shards.map((own, rank) =>
        ids.flatMap((id) => {
          const row = id - rank * shard
          if (row < 0 || row >= shard) return new Array<number>(hidden).fill(0)
          return [...own.subarray(row * hidden, (row + 1) * hidden)].map(
            (value) => value * (scale ?? 1),
          )
        }),
      )
      const step = rowsStep(tokens)
      step.set(STEP_SECTION.tokens, ids)
      const exact = scale === undefined && table === dtype
      return {
        builder,
        weights: { table: shards },
        inputs: {},
        step,
        expected: [{ buffer: 'x', values, tolerance: exact ? 'exact' : 'close' }],
      }
    },
  }
}

export const ROW_CASES: readonly OpCase[] = [
  ...ACT_DTYPES.flatMap((dtype) =>
    SHAPES.flatMap(([rows, cols]) => [
      rmsNormCase(rows, cols, dtype),
      addRmsNormCase(rows, cols, dtype, rows === 7),
      gatedCase('silu_mul', rows, cols, dtype),
      gatedCase('gelu_mul', rows, cols, dtype),
    ]),
  ),
  addRmsNormCase(33, 100, 'f32', true),
  ...ACT_DTYPES.map((dtype) => copyCase(7, 13, dtype)),
  rmsNormCase(33, 100, 'bf16', PARTS),
  addRmsNormCase(33, 100, 'bf16', false, PARTS),
  gatedCase('silu_mul', 33, 13, 'f32', PARTS),
  gatedCase('gelu_mul', 33, 13, 'f32', PARTS),
  copyCase(33, 13, 'f16', PARTS),
  gatherCase(9, 13, 'f32', [8, 0, 0, 3]),
  gatherCase(5, 100, 'bf16', [4]),
  embedCase(1, 13, 'f32', 'f32', 1),
  embedCase(37, 100, 'bf16', 'bf16', 2),
  embedCase(37, 100, 'f16', 'f32', 1, 8.5),
  embedCase(33, 64, 'f32', 'bf16', 4),
  embedCase(33, 64, 'bf16', 'f32', 2, undefined, PARTS),
]
