/** Cases of attention: head layouts, windows, soft caps, sinks, dtypes, prefill and decode rows mixed. */

import { attention } from '../../lib/ops/attention.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { fillKv, layOut, type SequenceRows } from './kv-step.ts'
import { builderFor, type OpCase, randomValues } from './op-case.ts'
import * as reference from './reference.ts'

export interface AttentionCase {
  readonly name: string
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly dtype: Dtype
  readonly kvDtype: Dtype
  readonly blockSize?: number
  readonly softcap?: number
  readonly window?: number
  /** Sinks are within ± this. */
  readonly sinks?: number
  readonly sequences: readonly SequenceRows[]
  /** What fills each sequence; by index when absent. */
  readonly seeds?: readonly number[]
  readonly parts?: readonly number[]
}

/** Queries of a row depend on the sequence's seed and the position alone. */
export function queriesOf(c: AttentionCase, seed: number, position: number): Float64Array {
  return randomValues(seed * 7919 + position, c.heads * c.headDim, c.dtype, 2)
}

export function seedsOf(c: AttentionCase): readonly number[] {
  return c.seeds ?? c.sequences.map((_, sequence) => sequence + 1)
}

export function attentionCase(c: AttentionCase, withReference = true): OpCase {
  return {
    name: `attention ${c.name}`,
    ...(c.parts ? { parts: c.parts } : {}),
    make() {
      const { heads, kvHeads, headDim } = c
      const layout = layOut(c.sequences, c.blockSize ?? 16)
      const builder = builderFor(layout.numTokens, 1, {
        numBlocks: layout.numBlocks,
        blockSize: layout.blockSize,
        maxBlocksPerSeq: layout.maxBlocksPerSeq,
      })
      const q = builder.arena('q', c.dtype, ['T', heads * headDim])
      const kv = builder.kv('kv', c.kvDtype, kvHeads, headDim)
      const o = builder.arena('o', c.dtype, ['T', heads * headDim])
      const sinks = c.sinks === undefined ? undefined : randomValues(271, heads, 'f32', c.sinks)
      const sinkBuffer = sinks && builder.weight('sinks', 'f32', [heads], 'plain')
      const scale = Math.fround(1 / Math.sqrt(headDim))
      const options = { scale, softcap: c.softcap, window: c.window }
      builder.add(
        'op',
        attention(
          { q, kv, sinks: sinkBuffer, o },
          { heads, kv_heads: kvHeads, head_dim: headDim, ...options },
        ),
      )
      const seeds = seedsOf(c)
      const kvShape = { kvHeads, headDim, dtype: c.kvDtype }
      const cache = fillKv(layout, kvShape, c.sequences, seeds)
      const width = heads * headDim
      const queries = new Float64Array(layout.numTokens * width)
      const outputs = new Float64Array(layout.numTokens * width)
      layout.rows.forEach(({ sequence, position, padding }, row) => {
        queries.set(queriesOf(c, seeds[sequence]!, position), row * width)
        if (padding || !withReference) return
        for (let h = 0; h < heads; h++) {
          const begin = row * width + h * headDim
          const kvHead = Math.floor(h / (heads / kvHeads))
          const head = reference.attendHead(
            queries.subarray(begin, begin + headDim),
            position,
            cache.keys[sequence]![kvHead]!,
            cache.values[sequence]![kvHead]!,
            {
              scale,
              ...(c.softcap === undefined ? {} : { softcap: c.softcap }),
              ...(c.window === undefined ? {} : { window: c.window }),
              ...(sinks && { sink: sinks[h]! }),
            },
          )
          outputs.set(head, begin)
        }
      })
      return {
        builder,
        inputs: { q: [queries], kv: [cache.buffer] },
        ...(sinks && { weights: { sinks: [sinks] } }),
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
  { start: 64, end: 65 },
  { start: 600, end: 601 },
]

export const ATTENTION_CASES: readonly OpCase[] = [
  {
    name: 'one head of one',
    heads: 1,
    kvHeads: 1,
    headDim: 1,
    dtype: 'f32',
    kvDtype: 'f32',
    sequences: [{ start: 0, end: 3 }],
  } as const,
  {
    name: 'grouped heads, f32',
    heads: 6,
    kvHeads: 2,
    headDim: 32,
    dtype: 'f32',
    kvDtype: 'f32',
    sequences: MIXED,
  } as const,
  {
    name: 'grouped heads, bf16, in parts that cut a sequence',
    heads: 14,
    kvHeads: 2,
    headDim: 16,
    dtype: 'bf16',
    kvDtype: 'bf16',
    sequences: MIXED,
    parts: [0, 9, 20, 20, 50],
  } as const,
  {
    name: 'single KV head, odd head size, blocks of 5, f16 cache',
    heads: 7,
    kvHeads: 1,
    headDim: 13,
    blockSize: 5,
    dtype: 'f32',
    kvDtype: 'f16',
    sequences: MIXED,
  } as const,
  {
    name: 'a KV head each, window and soft cap, f16',
    heads: 3,
    kvHeads: 3,
    headDim: 24,
    window: 20,
    softcap: 5,
    dtype: 'f16',
    kvDtype: 'f16',
    sequences: MIXED,
    parts: [0, 12, 50],
  } as const,
  {
    name: 'window of one, blocks of 128',
    heads: 2,
    kvHeads: 1,
    headDim: 17,
    window: 1,
    blockSize: 128,
    dtype: 'f32',
    kvDtype: 'f32',
    sequences: MIXED,
  } as const,
  {
    name: 'soft cap, window longer than a split',
    heads: 2,
    kvHeads: 1,
    headDim: 8,
    window: 700,
    softcap: 30,
    dtype: 'f32',
    kvDtype: 'bf16',
    sequences: [
      { start: 1300, end: 1303 },
      { start: 0, end: 5 },
    ],
  } as const,
  {
    name: 'sinks, window, bf16, in parts',
    heads: 8,
    kvHeads: 2,
    headDim: 16,
    window: 20,
    sinks: 3,
    dtype: 'bf16',
    kvDtype: 'bf16',
    sequences: MIXED,
    parts: [0, 12, 50],
  } as const,
  {
    name: 'sinks far above and below the scores, splits',
    heads: 3,
    kvHeads: 1,
    headDim: 17,
    sinks: 60,
    dtype: 'f32',
    kvDtype: 'f32',
    sequences: [
      { start: 1300, end: 1303 },
      { start: 0, end: 5 },
    ],
  } as const,
  {
    name: 'a long prompt in tiles',
    heads: 4,
    kvHeads: 1,
    headDim: 8,
    dtype: 'f32',
    kvDtype: 'f32',
    sequences: [{ start: 0, end: 150 }],
  } as const,
].map((c: AttentionCase) => attentionCase(c))
