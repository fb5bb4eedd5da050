/** Cases of rope_table and split_rope_cache. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { meanSquares } from '../../lib/ops/mean-squares.ts'
import { ropeTable } from '../../lib/ops/rope-table.ts'
import { splitRopeCache } from '../../lib/ops/split-rope-cache.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { kvIndex, layOut, type SequenceRows } from './kv-step.ts'
import { builderFor, type OpCase, randomValues, rowsStep } from './op-case.ts'
import * as reference from './reference.ts'

function inverseFrequencies(half: number, theta = 10_000): number[] {
  return Array.from({ length: half }, (_, i) => Math.fround(theta ** (-i / half)))
}

function ropeTableCase(
  name: string,
  positions: readonly number[],
  options: reference.RopeOptions,
  parts?: readonly number[],
): OpCase {
  return {
    name: `rope_table ${name}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const builder = builderFor(positions.length)
      const table = builder.arena('table', 'f32', ['T', 2 * options.invFreq.length])
      const { dynamic } = options
      builder.add(
        'op',
        ropeTable(
          { table },
          {
            inv_freq: options.invFreq,
            attention_factor: options.attentionFactor,
            dynamic_factor: dynamic?.factor,
            dynamic_base: dynamic?.base,
            dynamic_original: dynamic?.original,
          },
        ),
      )
      const step = rowsStep(positions.length)
      step.set(STEP_SECTION.positions, positions)
      return {
        builder,
        inputs: {},
        step,
        expected: [
          {
            buffer: 'table',
            values: [reference.ropeTable(positions, options)],
            tolerance: 'close',
          },
        ],
      }
    },
  }
}

interface SplitCase {
  readonly name: string
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly rotaryDim: number
  /** `all`: over all heads together, by means that are given. */
  readonly norms?: boolean | 'all'
  readonly dtype: Dtype
  readonly kvDtype: Dtype
  readonly blockSize: number
  readonly sequences: readonly SequenceRows[]
  readonly parts?: readonly number[]
}

function splitCase(c: SplitCase): OpCase {
  return {
    name: `split_rope_cache ${c.name}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const { heads, kvHeads, headDim, rotaryDim } = c
      const layout = layOut(c.sequences, c.blockSize)
      const builder = builderFor(layout.numTokens, 1, {
        numBlocks: layout.numBlocks,
        blockSize: layout.blockSize,
        maxBlocksPerSeq: layout.maxBlocksPerSeq,
      })
      const width = (heads + 2 * kvHeads) * headDim
      const qkv = builder.arena('qkv', c.dtype, ['T', width])
      const table = builder.arena('table', 'f32', ['T', rotaryDim])
      const q = builder.arena('q', c.dtype, ['T', heads * headDim])
      const kv = builder.kv('kv', c.kvDtype, kvHeads, headDim)
      const together = c.norms === 'all'
      const normOf = (name: string, heads: number) =>
        c.norms && builder.weight(name, 'f32', [together ? heads * headDim : headDim], 'plain')
      const qNorm = normOf('q_norm', heads) || undefined
      const kNorm = normOf('k_norm', kvHeads) || undefined
      const means = together ? builder.arena('means', 'f32', ['T', 2]) : undefined
      const eps = 1e-6
      builder.add(
        'op',
        splitRopeCache(
          { qkv, table, qNorm, kNorm, means, q, kv },
          {
            heads,
            kv_heads: kvHeads,
            head_dim: headDim,
            rotary_dim: rotaryDim,
            eps: c.norms ? eps : undefined,
          },
        ),
      )
      const inputs = randomValues(1, layout.numTokens * width, c.dtype)
      const qWeights = randomValues(2, together ? heads * headDim : headDim)
      const kWeights = randomValues(3, together ? kvHeads * headDim : headDim)
      // Of more heads than this rank has.
      const meanValues = randomValues(4, 2 * layout.numTokens).map((value) =>
        Math.fround(value ** 2),
      )
      const positions = layout.rows.map(({ position }) => position)
      const invFreq = inverseFrequencies(rotaryDim / 2)
      const angles = Float64Array.from(reference.ropeTable(positions, { invFreq }), Math.fround)

      const queries = new Float64Array(layout.numTokens * heads * headDim)
      const kvShape = { kvHeads, headDim, dtype: c.kvDtype }
      const cache = new Float64Array(layout.numBlocks * 2 * kvHeads * c.blockSize * headDim).fill(
        Number.NaN,
      )
      layout.rows.forEach(({ sequence, position, padding }, row) => {
        const turn = angles.subarray(row * rotaryDim, (row + 1) * rotaryDim)
        const head = (index: number) =>
          inputs.subarray(row * width + index * headDim, row * width + (index + 1) * headDim)
        const normalised = (
          values: Float64Array,
          weights: Float64Array,
          h: number,
          which: 0 | 1,
        ) => {
          if (!c.norms) return reference.ropeHead(values, turn, undefined, eps)
          if (!together) return reference.ropeHead(values, turn, weights, eps)
          const scale = 1 / Math.sqrt(meanValues[row * 2 + which]! + eps)
          const scaled = values.map((value, i) => value * scale * weights[h * headDim + i]!)
          return reference.ropeHead(scaled, turn, undefined, eps)
        }
        for (let h = 0; h < heads; h++) {
          queries.set(normalised(head(h), qWeights, h, 0), (row * heads + h) * headDim)
        }
        if (padding) return
        const slot = layout.slotOf(sequence, position)
        for (let h = 0; h < kvHeads; h++) {
          const key = normalised(head(heads + h), kWeights, h, 1)
          cache.set(key, kvIndex(layout, kvShape, slot, 0, h))
          cache.set(head(heads + kvHeads + h), kvIndex(layout, kvShape, slot, 1, h))
        }
      })
      return {
        builder,
        weights: { q_norm: [qWeights], k_norm: [kWeights] },
        inputs: { qkv: [inputs], table: [angles], ...(together && { means: [meanValues] }) },
        step: layout.sections,
        expected: [
          { buffer: 'q', values: [queries], tolerance: 'close' },
          { buffer: 'kv', values: [cache], tolerance: 'close' },
        ],
      }
    },
  }
}

/** Terms of two ranks' means add up to the means of all heads. */
function meanSquaresCase(
  rows: number,
  sizes: { readonly heads: number; readonly kvHeads: number; readonly headDim: number },
  dtype: Dtype,
  parts?: readonly number[],
): OpCase {
  const { heads, kvHeads, headDim } = sizes
  const world = 2
  return {
    name: `mean_squares [${rows}, (${heads} + 2·${kvHeads})·${headDim}] ${dtype}${parts ? ' in parts' : ''}`,
    ...(parts ? { parts } : {}),
    make() {
      const builder = builderFor(rows, world)
      const width = (heads + 2 * kvHeads) * headDim
      const qkv = builder.arena('qkv', dtype, ['T', width])
      const y = builder.arena('y', 'f32', ['T', 2])
      builder.add('op', meanSquares({ qkv, y }, { heads, kv_heads: kvHeads, head_dim: headDim }))
      const inputs = [0, 1].map((rank) => randomValues(rank + 1, rows * width, dtype))
      const meanOf = (values: Float64Array) =>
        values.reduce((sum, value) => sum + value ** 2, 0) / values.length / world
      const values = inputs.map((input) =>
        Float64Array.from({ length: 2 * rows }, (_, i) => {
          const row = input.subarray(Math.floor(i / 2) * width, Math.floor(i / 2) * width + width)
          const keys = heads * headDim
          const end = keys + kvHeads * headDim
          return meanOf(i % 2 === 0 ? row.subarray(0, keys) : row.subarray(keys, end))
        }),
      )
      return {
        builder,
        inputs: { qkv: inputs },
        step: rowsStep(rows),
        expected: [{ buffer: 'y', values, tolerance: 'close' }],
      }
    },
  }
}

const SEQUENCES: readonly SequenceRows[] = [
  { start: 0, end: 21, padding: [19, 20] },
  { start: 40, end: 41 },
  { start: 7, end: 18 },
]
const COMMON = { heads: 4, kvHeads: 2, headDim: 16, rotaryDim: 16, blockSize: 16 }

export const ROPE_CASES: readonly OpCase[] = [
  ropeTableCase('one pair', [0], { invFreq: [1] }),
  ropeTableCase('plain', [0, 1, 2, 500, 100_000], { invFreq: inverseFrequencies(32) }),
  ropeTableCase('with attention factor', [3, 4, 5], {
    invFreq: inverseFrequencies(7),
    attentionFactor: 1.25,
  }),
  ropeTableCase('dynamic', [0, 31, 32, 33, 100], {
    invFreq: inverseFrequencies(8),
    dynamic: { factor: 2, base: 10_000, original: 32 },
  }),
  ropeTableCase('plain', [0, 9, 8, 7, 6, 5, 4], { invFreq: inverseFrequencies(5) }, [0, 3, 3, 7]),
  splitCase({ name: 'f32', ...COMMON, dtype: 'f32', kvDtype: 'f32', sequences: SEQUENCES }),
  splitCase({
    name: 'q and k norm, bf16',
    ...COMMON,
    norms: true,
    dtype: 'bf16',
    kvDtype: 'bf16',
    sequences: SEQUENCES,
  }),
  splitCase({
    name: 'q and k norm over all heads, in parts',
    ...COMMON,
    norms: 'all',
    dtype: 'f32',
    kvDtype: 'f32',
    sequences: SEQUENCES,
    parts: [0, 9, 33],
  }),
  splitCase({
    name: 'norm over all heads, odd heads, bf16',
    ...COMMON,
    heads: 3,
    kvHeads: 1,
    headDim: 13,
    rotaryDim: 6,
    norms: 'all',
    dtype: 'bf16',
    kvDtype: 'bf16',
    sequences: SEQUENCES,
  }),
  meanSquaresCase(1, { heads: 1, kvHeads: 1, headDim: 1 }, 'f32'),
  meanSquaresCase(7, { heads: 3, kvHeads: 1, headDim: 13 }, 'bf16'),
  meanSquaresCase(40, { heads: 16, kvHeads: 4, headDim: 64 }, 'f16', [0, 11, 11, 40]),
  splitCase({
    name: 'partial rotary, f32 to f16 cache, in parts',
    ...COMMON,
    headDim: 80,
    rotaryDim: 26,
    blockSize: 5,
    dtype: 'f32',
    kvDtype: 'f16',
    sequences: SEQUENCES,
    parts: [0, 9, 22, 22, 33],
  }),
  splitCase({
    name: 'one row, odd head',
    heads: 1,
    kvHeads: 1,
    headDim: 13,
    rotaryDim: 2,
    blockSize: 16,
    norms: true,
    dtype: 'f16',
    kvDtype: 'f32',
    sequences: [{ start: 3, end: 4 }],
  }),
]
