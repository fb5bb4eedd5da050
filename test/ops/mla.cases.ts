/** Cases of latent attention: head_matmul, mla_split_rope_cache, mla_attention. */

import { headMatmul } from '../../lib/ops/head-matmul.ts'
import { mlaAttention } from '../../lib/ops/mla-attention.ts'
import { mlaSplitRopeCache } from '../../lib/ops/mla-split-rope-cache.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { type KvLayout, layOut, type SequenceRows } from './kv-step.ts'
import { builderFor, type OpCase, randomValues, rowsStep } from './op-case.ts'
import * as reference from './reference.ts'

interface HeadMatmulCase {
  readonly rows: number
  readonly heads: number
  /** Columns of a head of x, and how many of them are multiplied. */
  readonly columns: number
  readonly depth: number
  readonly n: number
  readonly dtype: Dtype
  readonly weightDtype: Dtype
  readonly parts?: readonly number[]
}

function headMatmulCase(c: HeadMatmulCase): OpCase {
  const { rows, heads, columns, depth, n } = c
  return {
    name:
      `head_matmul [${rows}, ${heads}·${columns}]·[${n}, ${depth}]ᵀ ${c.dtype}·${c.weightDtype}` +
      `${c.parts ? ' in parts' : ''}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const builder = builderFor(rows)
      const padded = Math.ceil(n / 16) * 16
      const x = builder.arena('x', c.dtype, ['T', heads * columns])
      const weight = builder.weight('weight', c.weightDtype, [heads * padded, depth], 'matmul')
      const y = builder.arena('y', c.dtype, ['T', heads * n])
      builder.add('op', headMatmul({ x, weight, y }, { heads }))
      const inputs = randomValues(1, rows * heads * columns, c.dtype)
      // What pads a head's weights must not be seen: it is not zero here.
      const weights = randomValues(2, heads * padded * depth, c.weightDtype)
      const values = new Float64Array(rows * heads * n)
      for (let head = 0; head < heads; head++) {
        const matrix = weights.subarray(head * padded * depth, (head * padded + n) * depth)
        for (let row = 0; row < rows; row++) {
          const from = (row * heads + head) * columns
          const part = inputs.subarray(from, from + depth)
          values.set(reference.matmul(part, matrix, depth, undefined), (row * heads + head) * n)
        }
      }
      return {
        builder,
        weights: { weight: [weights] },
        inputs: { x: [inputs] },
        step: rowsStep(rows),
        expected: [{ buffer: 'y', values: [values], tolerance: 'close' }],
      }
    },
  }
}

/** Element 0 of a slot's vector in [blocks, 1, 1, blockSize, dim]. */
function latentIndex(layout: KvLayout, dim: number, sequence: number, position: number): number {
  return layout.slotOf(sequence, position) * dim
}

function limitsOf(layout: KvLayout) {
  const { numBlocks, blockSize, maxBlocksPerSeq } = layout
  return { numBlocks, blockSize, maxBlocksPerSeq }
}

interface LatentCase {
  readonly name: string
  readonly heads: number
  readonly latentDim: number
  readonly ropeDim: number
  readonly dtype: Dtype
  readonly kvDtype: Dtype
  readonly blockSize?: number
  readonly sequences: readonly SequenceRows[]
  readonly parts?: readonly number[]
}

interface SplitCase extends LatentCase {
  /** Columns of a head of q before those that are rotated. */
  readonly nopeDim: number
  readonly interleaved?: true
}

/** Pairs (2i, 2i + 1) to (i, i + half). */
function sorted(values: Float64Array): Float64Array {
  const half = values.length / 2
  return values.map((_, i) => values[i < half ? 2 * i : 2 * (i - half) + 1]!)
}

function splitCase(c: SplitCase): OpCase {
  return {
    name: `mla_split_rope_cache ${c.name}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const { heads, nopeDim, latentDim, ropeDim, interleaved } = c
      const layout = layOut(c.sequences, c.blockSize ?? 16)
      const rows = layout.numTokens
      const builder = builderFor(rows, 1, limitsOf(layout))
      const [columns, dim] = [nopeDim + ropeDim, latentDim + ropeDim]
      const q = builder.arena('q', c.dtype, ['T', heads * columns])
      const latent = builder.arena('latent', c.dtype, ['T', dim])
      const table = builder.arena('table', 'f32', ['T', ropeDim])
      const norm = builder.weight('norm', 'f32', [latentDim], 'plain')
      const qRope = builder.arena('q_rope', c.dtype, ['T', heads * ropeDim])
      const kv = builder.latentCache('kv', c.kvDtype, dim)
      const eps = 1e-6
      builder.add(
        'op',
        mlaSplitRopeCache(
          { q, latent, table, norm, qRope, kv },
          { heads, latent_dim: latentDim, rope_dim: ropeDim, eps, interleaved },
        ),
      )
      const queries = randomValues(1, rows * heads * columns, c.dtype)
      const latents = randomValues(2, rows * dim, c.dtype)
      const weights = randomValues(3, latentDim)
      const positions = layout.rows.map(({ position }) => position)
      const invFreq = Array.from({ length: ropeDim / 2 }, (_, i) => Math.fround(100 ** -i))
      const angles = Float64Array.from(reference.ropeTable(positions, { invFreq }), Math.fround)

      const turned = new Float64Array(rows * heads * ropeDim)
      const cache = new Float64Array(layout.numBlocks * layout.blockSize * dim).fill(Number.NaN)
      layout.rows.forEach(({ sequence, position, padding }, row) => {
        const turn = (values: Float64Array) =>
          reference.ropeHead(
            interleaved ? sorted(values) : values,
            angles.subarray(row * ropeDim, (row + 1) * ropeDim),
            undefined,
            eps,
          )
        for (let h = 0; h < heads; h++) {
          const end = (row * heads + h + 1) * columns
          turned.set(turn(queries.subarray(end - ropeDim, end)), (row * heads + h) * ropeDim)
        }
        if (padding) return
        const vector = latents.subarray(row * dim, (row + 1) * dim)
        const at = latentIndex(layout, dim, sequence, position)
        cache.set(reference.normalize(vector.subarray(0, latentDim), weights, eps), at)
        cache.set(turn(vector.subarray(latentDim)), at + latentDim)
      })
      return {
        builder,
        weights: { norm: [weights] },
        inputs: { q: [queries], latent: [latents], table: [angles] },
        step: layout.sections,
        expected: [
          { buffer: 'q_rope', values: [turned], tolerance: 'close' },
          { buffer: 'kv', values: [cache], tolerance: 'close' },
        ],
      }
    },
  }
}

export interface LatentAttentionCase extends LatentCase {
  /** What fills each sequence; by index when absent. */
  readonly seeds?: readonly number[]
}

export function latentAttentionCase(c: LatentAttentionCase, withReference = true): OpCase {
  return {
    name: `mla_attention ${c.name}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const { heads, latentDim, ropeDim } = c
      const layout = layOut(c.sequences, c.blockSize ?? 16)
      const rows = layout.numTokens
      const builder = builderFor(rows, 1, limitsOf(layout))
      const dim = latentDim + ropeDim
      const qLatent = builder.arena('q_latent', c.dtype, ['T', heads * latentDim])
      const qRope = builder.arena('q_rope', c.dtype, ['T', heads * ropeDim])
      const kv = builder.latentCache('kv', c.kvDtype, dim)
      const o = builder.arena('o', c.dtype, ['T', heads * latentDim])
      const scale = Math.fround(1 / Math.sqrt(dim))
      builder.add(
        'op',
        mlaAttention(
          { qLatent, qRope, kv, o },
          { heads, latent_dim: latentDim, rope_dim: ropeDim, scale },
        ),
      )
      const seeds = c.seeds ?? c.sequences.map((_, sequence) => sequence + 1)
      const cache = new Float64Array(layout.numBlocks * layout.blockSize * dim).fill(Number.NaN)
      const keys = c.sequences.map(({ end }, sequence) => {
        const vectors = new Float64Array(end * dim)
        for (let position = 0; position < end; position++) {
          const vector = randomValues(seeds[sequence]! * 5003 + position, dim, c.kvDtype)
          vectors.set(vector, position * dim)
          cache.set(vector, latentIndex(layout, dim, sequence, position))
        }
        return vectors
      })
      const [latents, ropes, outputs] = [latentDim, ropeDim, latentDim].map(
        (size) => new Float64Array(rows * heads * size),
      ) as [Float64Array, Float64Array, Float64Array]
      layout.rows.forEach(({ sequence, position, padding }, row) => {
        // Queries of a row depend on the sequence's seed and the position alone.
        const seed = seeds[sequence]! * 7919 + position
        for (let h = 0; h < heads; h++) {
          const query = randomValues(seed * 131 + h, dim, c.dtype, 2)
          latents.set(query.subarray(0, latentDim), (row * heads + h) * latentDim)
          ropes.set(query.subarray(latentDim), (row * heads + h) * ropeDim)
          if (padding || !withReference) continue
          const seen = keys[sequence]!
          const all = reference.attendHead(query, position, seen, seen, { scale })
          outputs.set(all.subarray(0, latentDim), (row * heads + h) * latentDim)
        }
      })
      return {
        builder,
        inputs: { q_latent: [latents], q_rope: [ropes], kv: [cache] },
        step: layout.sections,
        expected: withReference ? [{ buffer: 'o', values: [outputs], tolerance: 'close' }] : [],
      }
    },
  }
}

/** A prompt, a chunk in the middle, decode rows on and off block boundaries, a padded row. */
const MIXED: readonly SequenceRows[] = [
  { start: 0, end: 1 },
  { start: 0, end: 37 },
  { start: 61, end: 70, padding: [68, 69] },
  { start: 63, end: 64 },
  { start: 600, end: 601 },
]
const ONE: readonly SequenceRows[] = [{ start: 3, end: 4 }]
const F32 = { dtype: 'f32', kvDtype: 'f32' } as const
const BF16 = { dtype: 'bf16', kvDtype: 'bf16' } as const
const WEIGHTS = { dtype: 'f32', weightDtype: 'f32' } as const

const LATENT: readonly LatentAttentionCase[] = [
  { name: 'one head of one and two', heads: 1, latentDim: 1, ropeDim: 2, ...F32, sequences: ONE },
  { name: 'f32', heads: 6, latentDim: 32, ropeDim: 8, ...F32, sequences: MIXED },
  {
    name: 'bf16, in parts that cut a sequence',
    heads: 7,
    latentDim: 48,
    ropeDim: 16,
    ...BF16,
    sequences: MIXED,
    parts: [0, 9, 20, 20, 49],
  },
  {
    name: 'odd sizes, blocks of 5, f16 cache',
    heads: 3,
    latentDim: 13,
    ropeDim: 6,
    blockSize: 5,
    dtype: 'f32',
    kvDtype: 'f16',
    sequences: MIXED,
  },
  {
    name: 'odd latent size, bf16',
    heads: 2,
    latentDim: 21,
    ropeDim: 4,
    ...BF16,
    sequences: MIXED,
  },
  {
    name: 'more heads than a unit takes',
    heads: 67,
    latentDim: 24,
    ropeDim: 8,
    ...F32,
    sequences: [
      { start: 0, end: 5 },
      { start: 1100, end: 1101 },
    ],
  },
  {
    name: 'sizes of DeepSeek-V3',
    heads: 16,
    latentDim: 512,
    ropeDim: 64,
    ...BF16,
    sequences: [
      { start: 130, end: 131 },
      { start: 0, end: 9 },
    ],
  },
]

export const MLA_CASES: readonly OpCase[] = [
  headMatmulCase({ rows: 1, heads: 1, columns: 1, depth: 1, n: 1, ...WEIGHTS }),
  headMatmulCase({ rows: 1, heads: 16, columns: 192, depth: 128, n: 512, ...WEIGHTS }),
  headMatmulCase({ rows: 7, heads: 3, columns: 13, depth: 11, n: 17, ...WEIGHTS }),
  headMatmulCase({
    rows: 37,
    heads: 5,
    columns: 64,
    depth: 64,
    n: 24,
    dtype: 'bf16',
    weightDtype: 'bf16',
    parts: [0, 9, 9, 30, 37],
  }),
  headMatmulCase({
    rows: 19,
    heads: 2,
    columns: 40,
    depth: 30,
    n: 48,
    dtype: 'f16',
    weightDtype: 'bf16',
  }),
  headMatmulCase({
    rows: 150,
    heads: 4,
    columns: 1024,
    depth: 512,
    n: 128,
    dtype: 'bf16',
    weightDtype: 'f32',
  }),
  splitCase({
    name: 'f32',
    heads: 4,
    nopeDim: 16,
    latentDim: 16,
    ropeDim: 8,
    ...F32,
    sequences: MIXED,
  }),
  splitCase({
    name: 'interleaved, bf16, in parts',
    heads: 3,
    nopeDim: 32,
    latentDim: 48,
    ropeDim: 16,
    interleaved: true,
    ...BF16,
    sequences: MIXED,
    parts: [0, 9, 20, 20, 49],
  }),
  splitCase({
    name: 'one head of one pair, odd latent, blocks of 5, f16 cache',
    heads: 1,
    nopeDim: 1,
    latentDim: 13,
    ropeDim: 2,
    interleaved: true,
    blockSize: 5,
    dtype: 'f32',
    kvDtype: 'f16',
    sequences: MIXED,
  }),
  splitCase({
    name: 'sizes of DeepSeek-V3, one row, to f32',
    heads: 16,
    nopeDim: 128,
    latentDim: 512,
    ropeDim: 64,
    interleaved: true,
    dtype: 'bf16',
    kvDtype: 'f32',
    sequences: ONE,
  }),
  ...LATENT.map((c) => latentAttentionCase(c)),
]
