/** Cases of matmul and logits. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { logits } from '../../lib/ops/logits.ts'
import { matmul } from '../../lib/ops/matmul.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { builderFor, type OpCase, randomValues, rowsStep } from './op-case.ts'
import * as reference from './reference.ts'

interface MatmulCase {
  readonly rows: number
  readonly depth: number
  readonly n: number
  readonly dtype: Dtype
  readonly weightDtype: Dtype
  readonly world?: number
  readonly biasOn?: 'all' | 'rank0'
  readonly parts?: readonly number[]
}

function matmulCase(c: MatmulCase): OpCase {
  const { rows, depth, n, world = 1 } = c
  return {
    name:
      `matmul [${rows}, ${depth}]·[${n}, ${depth}]ᵀ ${c.dtype}·${c.weightDtype}, ${world} ranks` +
      `${c.biasOn ? `, bias ${c.biasOn}` : ''}${c.parts ? ' in parts' : ''}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(rows, world)
      const x = builder.arena('x', c.dtype, ['T', depth])
      const weight = builder.weight('weight', c.weightDtype, [n, depth], 'matmul')
      const bias = c.biasOn ? builder.weight('bias', 'f32', [n], 'plain') : undefined
      const y = builder.arena('y', c.dtype, ['T', n])
      builder.add('op', matmul({ x, weight, bias, y }, { bias_on: c.biasOn }))
      const perRank = <T>(make: (rank: number) => T) =>
        Array.from({ length: world }, (_, r) => make(r))
      const inputs = perRank((rank) => randomValues(rank + 1, rows * depth, c.dtype))
      const weights = perRank((rank) => randomValues(rank + 11, n * depth, c.weightDtype))
      const biases = perRank((rank) => randomValues(rank + 21, n))
      const values = perRank((rank) => {
        const biased = c.biasOn === 'all' || (c.biasOn === 'rank0' && rank === 0)
        return reference.matmul(
          inputs[rank]!,
          weights[rank]!,
          depth,
          biased ? biases[rank] : undefined,
        )
      })
      return {
        builder,
        weights: { weight: weights, bias: biases },
        inputs: { x: inputs },
        step: rowsStep(rows),
        expected: [{ buffer: 'y', values, tolerance: 'close' }],
      }
    },
  }
}

function logitsCase(rows: number, dtype: Dtype, softcap?: number): OpCase {
  return {
    name: `logits of ${rows} rows, ${dtype}${softcap ? ', soft cap' : ''}`,
    make() {
      const [tokens, depth, n] = [rows + 2, 24, 48]
      const builder = builderFor(tokens)
      const x = builder.arena('x', dtype, ['R', depth])
      const weight = builder.weight('weight', dtype, [n, depth], 'matmul')
      const l = builder.arena('l', 'f32', ['R', n])
      builder.add('op', logits({ x, weight, l }, { softcap }))
      const inputs = randomValues(1, rows * depth, dtype)
      const weights = randomValues(2, n * depth, dtype)
      const exact = reference.matmul(inputs, weights, depth, undefined)
      const step = rowsStep(tokens)
      step.set(STEP_SECTION.rows, Array.from({ length: rows }, (_, row) => [row, -1, -1, 0]).flat())
      return {
        builder,
        weights: { weight: [weights] },
        inputs: { x: [inputs] },
        step,
        expected: [
          {
            buffer: 'l',
            values: [softcap === undefined ? exact : reference.softcapped(exact, softcap)],
            tolerance: 'close',
          },
        ],
      }
    },
  }
}

export const MATMUL_CASES: readonly OpCase[] = [
  matmulCase({ rows: 1, depth: 1, n: 1, dtype: 'f32', weightDtype: 'f32' }),
  matmulCase({ rows: 1, depth: 97, n: 33, dtype: 'f32', weightDtype: 'f32', biasOn: 'all' }),
  matmulCase({ rows: 7, depth: 64, n: 100, dtype: 'bf16', weightDtype: 'bf16' }),
  matmulCase({ rows: 33, depth: 131, n: 48, dtype: 'f16', weightDtype: 'f16' }),
  matmulCase({ rows: 19, depth: 96, n: 32, dtype: 'f32', weightDtype: 'bf16', biasOn: 'all' }),
  matmulCase({
    rows: 5,
    depth: 40,
    n: 24,
    dtype: 'f32',
    weightDtype: 'f32',
    world: 2,
    biasOn: 'rank0',
  }),
  matmulCase({
    rows: 33,
    depth: 40,
    n: 24,
    dtype: 'f32',
    weightDtype: 'f16',
    biasOn: 'all',
    parts: [0, 1, 1, 17, 33],
  }),
  logitsCase(1, 'f32'),
  logitsCase(5, 'bf16', 30),
]
