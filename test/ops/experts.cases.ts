/** Cases of the ops of routed experts that one group of ranks shows; test/experts.test.ts has more. */

import { groupedGlu } from '../../lib/ops/grouped-glu.ts'
import { groupedMatmul } from '../../lib/ops/grouped-matmul.ts'
import { moeRoute, type RouteAttrs } from '../../lib/ops/moe-route.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { createRandom } from '../support/random.ts'
import { ACT_DTYPES, builderFor, type OpCase, randomValues, rowsStep } from './op-case.ts'
import * as reference from './reference.ts'
import { route } from './routing-reference.ts'

interface RouteCase {
  readonly name: string
  readonly rows: number
  readonly experts: number
  readonly k: number
  readonly attrs: RouteAttrs
  readonly bias?: boolean
  /** Some logits are NaN or infinite, some equal, one row is all NaN. */
  readonly odd?: boolean
  readonly parts?: readonly number[]
}

function routeCase(c: RouteCase): OpCase {
  const { rows, experts, k, attrs } = c
  return {
    name: `moe_route ${c.name} [${rows}, ${experts}] top ${k}${c.parts ? ' in parts' : ''}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(rows)
      const logits = builder.arena('logits', 'f32', ['T', experts])
      const bias = c.bias ? builder.weight('bias', 'f32', [experts], 'plain') : undefined
      const ids = builder.arena('ids', 'i32', ['T', k])
      const weights = builder.arena('weights', 'f32', ['T', k])
      builder.add('op', moeRoute({ logits, bias, ids, weights }, attrs))
      const values = c.odd ? oddLogits(rows, experts) : randomValues(3, rows * experts, 'f32', 2)
      const biases = randomValues(5, experts, 'f32', 0.2)
      const routes = Array.from({ length: rows }, (_, row) =>
        route(
          values.subarray(row * experts, (row + 1) * experts),
          k,
          attrs,
          c.bias ? biases : undefined,
        ),
      )
      return {
        builder,
        weights: { bias: [biases] },
        inputs: { logits: [values] },
        step: rowsStep(rows),
        expected: [
          { buffer: 'ids', values: [routes.flatMap((r) => r.ids)], tolerance: 'exact' },
          { buffer: 'weights', values: [routes.flatMap((r) => r.weights)], tolerance: 'close' },
        ],
      }
    },
  }
}

function oddLogits(rows: number, experts: number): Float64Array {
  const random = createRandom(9)
  const values = Float64Array.from({ length: rows * experts }, () => {
    const kind = random.next()
    if (kind < 0.1) return Number.NaN
    if (kind < 0.2) return -Infinity
    return random.int(-3, 3)
  })
  return values.fill(Number.NaN, 0, experts)
}

interface GroupedCase {
  readonly counts: readonly number[]
  readonly depth: number
  readonly width: number
  readonly dtype: Dtype
  readonly weightDtype: Dtype
  readonly bias?: boolean
}

/** Where each expert's rows begin, and where the last one's end. */
function offsetsOf(counts: readonly number[]): number[] {
  const offsets = [0]
  for (const count of counts) offsets.push(offsets.at(-1)! + count)
  return offsets
}

function groupedMatmulCase(c: GroupedCase): OpCase {
  const { counts, depth, width, dtype, weightDtype } = c
  return {
    name: `grouped_matmul {${counts}} [${depth}]→[${width}] ${dtype}·${weightDtype}${c.bias ? ', bias' : ''}`,
    make() {
      const used = counts.reduce((a, b) => a + b, 0)
      const rows = used + 2
      const padded = Math.ceil(width / 16) * 16
      const builder = builderFor(1)
      const x = builder.arena('x', dtype, [rows, depth])
      const offsets = builder.arena('offsets', 'i32', [counts.length + 1])
      const size = counts.length * padded
      const weight = builder.weight('weight', weightDtype, [size, depth], 'matmul')
      const bias = c.bias ? builder.weight('bias', 'f32', [size], 'plain') : undefined
      const y = builder.arena('y', dtype, [rows, width])
      builder.add('op', groupedMatmul({ x, offsets, weight, bias, y }))
      const inputs = randomValues(1, used * depth, dtype)
      const weights = randomValues(2, size * depth, weightDtype)
      const biases = randomValues(4, size)
      const bounds = offsetsOf(counts)
      const values = counts.flatMap((count, e) =>
        count === 0
          ? []
          : Array.from(
              reference.matmul(
                inputs.subarray(bounds[e]! * depth, bounds[e + 1]! * depth),
                weights.subarray(e * padded * depth, (e * padded + width) * depth),
                depth,
                c.bias ? biases.subarray(e * padded, e * padded + width) : undefined,
              ),
            ),
      )
      return {
        builder,
        weights: { weight: [weights], bias: [biases] },
        inputs: { x: [inputs], offsets: [bounds] },
        step: rowsStep(1),
        expected: [{ buffer: 'y', values: [values], tolerance: 'close' }],
      }
    },
  }
}

function groupedGluCase(dtype: Dtype, activation: 'silu' | 'gelu_tanh' | 'clamped_silu'): OpCase {
  const [counts, width] = [[2, 0, 3], 13]
  return {
    name: `grouped_glu ${activation} ${dtype}`,
    make() {
      const builder = builderFor(1)
      const gateUp = builder.arena('gate_up', dtype, [7, 2 * width])
      const offsets = builder.arena('offsets', 'i32', [counts.length + 1])
      const y = builder.arena('y', dtype, [7, width])
      const clamped = activation === 'clamped_silu'
      const attrs = { activation, ...(clamped && { alpha: 1.702, limit: 1.5 }) }
      builder.add('op', groupedGlu({ gateUp, offsets, y }, attrs))
      const values = randomValues(6, 5 * 2 * width, dtype, 2)
      const out = Array.from({ length: 5 * width }, (_, i) => {
        const [row, column] = [Math.floor(i / width), i % width]
        const gate = values[row * 2 * width + column]!
        const up = values[row * 2 * width + width + column]!
        if (activation === 'silu') return (gate / (1 + Math.exp(-gate))) * up
        if (activation === 'gelu_tanh') {
          const inner = Math.sqrt(2 / Math.PI) * (gate + 0.044715 * gate ** 3)
          return 0.5 * gate * (1 + Math.tanh(inner)) * up
        }
        const g = Math.min(gate, 1.5)
        return (g / (1 + Math.exp(-1.702 * g))) * (Math.max(-1.5, Math.min(1.5, up)) + 1)
      })
      return {
        builder,
        inputs: { gate_up: [values], offsets: [offsetsOf(counts)] },
        step: rowsStep(1),
        expected: [{ buffer: 'y', values: [out], tolerance: 'close' }],
      }
    },
  }
}

const softmax = { score: 'softmax' } as const
const sigmoid = { score: 'sigmoid', normalise: true, scale: 2.5 } as const

export const EXPERT_CASES: readonly OpCase[] = [
  routeCase({ name: 'softmax', rows: 7, experts: 8, k: 2, attrs: softmax }),
  routeCase({
    name: 'normalised',
    rows: 7,
    experts: 61,
    k: 8,
    attrs: { ...softmax, normalise: true },
  }),
  routeCase({ name: 'one expert', rows: 3, experts: 1, k: 1, attrs: softmax }),
  routeCase({ name: 'every expert', rows: 3, experts: 5, k: 5, attrs: softmax }),
  routeCase({ name: 'in 1024 experts', rows: 3, experts: 1024, k: 32, attrs: softmax }),
  routeCase({
    name: 'groups by their best',
    rows: 9,
    experts: 16,
    k: 4,
    attrs: { ...softmax, scale: 1.5, groups: 4, top_groups: 2, group_score: 'max' },
  }),
  routeCase({ name: 'sigmoid with bias', rows: 9, experts: 16, k: 4, attrs: sigmoid, bias: true }),
  routeCase({
    name: 'groups by their two best',
    rows: 9,
    experts: 16,
    k: 4,
    attrs: { ...sigmoid, groups: 4, top_groups: 2, group_score: 'top2' },
    bias: true,
  }),
  routeCase({
    name: 'softmax of the chosen',
    rows: 9,
    experts: 32,
    k: 4,
    attrs: { score: 'softmax_chosen' },
  }),
  ...(['softmax', 'sigmoid', 'softmax_chosen'] as const).map((score) =>
    routeCase({
      name: `${score} of odd logits`,
      rows: 31,
      experts: 16,
      k: 6,
      attrs: { score, normalise: true },
      odd: true,
    }),
  ),
  routeCase({
    name: 'groups of odd logits',
    rows: 31,
    experts: 16,
    k: 6,
    attrs: { ...sigmoid, groups: 8, top_groups: 3, group_score: 'max' },
    odd: true,
  }),
  routeCase({ name: 'softmax', rows: 7, experts: 8, k: 2, attrs: softmax, parts: [0, 3, 3, 7] }),
  ...ACT_DTYPES.map((dtype) =>
    groupedMatmulCase({ counts: [3, 0, 1, 37], depth: 29, width: 21, dtype, weightDtype: dtype }),
  ),
  // More experts than are dealt together, of few and of many rows.
  groupedMatmulCase({
    counts: Array.from({ length: 83 }, (_, e) => (e === 41 ? 30 : e % 4)),
    depth: 20,
    width: 35,
    dtype: 'bf16',
    weightDtype: 'bf16',
    bias: true,
  }),
  groupedMatmulCase({
    counts: [0, 0, 2],
    depth: 64,
    width: 32,
    dtype: 'bf16',
    weightDtype: 'bf16',
    bias: true,
  }),
  groupedMatmulCase({
    counts: [1],
    depth: 1,
    width: 1,
    dtype: 'f32',
    weightDtype: 'bf16',
    bias: true,
  }),
  ...ACT_DTYPES.map((dtype) => groupedGluCase(dtype, 'silu')),
  groupedGluCase('f32', 'gelu_tanh'),
  groupedGluCase('bf16', 'clamped_silu'),
  groupedGluCase('f32', 'clamped_silu'),
]
