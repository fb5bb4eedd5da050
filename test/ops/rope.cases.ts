/** Cases of rope_table and split_rope_cache. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
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
  readonly norms?: boolean
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
      const qNorm = c.norms ? builder.weight('q_norm', 'f32', [headDim], 'plain') : undefined
      const kNorm = c.norms ? builder.weight('k_norm', 'f32', [headDim], 'plain') : undefined
      const eps = 1e-6
      builder.add(
        'op',
        splitRopeCache(
          { qkv, table, qNorm, kNorm, q, kv },
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
      const [qWeights, kWeights] = [randomValues(2, headDim), randomValues(3, headDim)]
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
        for (let h = 0; h < heads; h++) {
          const turned = reference.ropeHead(head(h), turn, c.norms ? qWeights : undefined, eps)
          queries.set(turned, (row * heads + h) * headDim)
        }
        if (padding) return
        const slot = layout.slotOf(sequence, position)
        for (let h = 0; h < kvHeads; h++) {
          const key = reference.ropeHead(head(heads + h), turn, c.norms ? kWeights : undefined, eps)
          cache.set(key, kvIndex(layout, kvShape, slot, 0, h))
          cache.set(head(heads + kvHeads + h), kvIndex(layout, kvShape, slot, 1, h))
        }
      })
      return {
        builder,
        weights: { q_norm: [qWeights], k_norm: [kWeights] },
        inputs: { qkv: [inputs], table: [angles] },
        step: layout.sections,
        expected: [
          { buffer: 'q', values: [queries], tolerance: 'close' },
          { buffer: 'kv', values: [cache], tolerance: 'close' },
        ],
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
