/**
 * Paged attention with the heads of the 0.5 B bench model (16 query heads over 8 KV heads of 64):
 * `attention-decode`, one new token of every sequence against its whole context, bound by reading
 * the KV cache; `attention-prefill`, all tokens of one prompt at once, bound by multiply-adds.
 */

import { STEP_SECTION } from '../../engine/step.ts'
import { attention } from '../../ops/attention.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { ProgramLimits } from '../../program/types.ts'
import { makeRandom } from '../checkpoint.ts'
import { countWrong, decodeFloats, dtypeBytes, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import { countSets, encodeSections, matrixBytes, OpRuntime, placeApart } from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

const HEADS = 16
const KV_HEADS = 8
const HEAD_DIM = 64
const BLOCK = 16
const SCALE = 1 / Math.sqrt(HEAD_DIM)
const CHECKED_HEADS = 64

/** `sequences` sequences of `length` tokens each, of which the last `rows` are queries. */
interface Layout {
  readonly sequences: number
  readonly length: number
  readonly rows: number
}

function blocksPerSequence({ length }: Layout): number {
  return Math.ceil(length / BLOCK)
}

/** Blocks of a sequence lie `sequences` apart, as those of sequences that grew side by side. */
function blockOf(layout: Layout, sequence: number, index: number): number {
  return index * layout.sequences + sequence
}

function attentionLimits(layout: Layout): ProgramLimits {
  return {
    maxTokens: layout.sequences * layout.rows,
    maxRows: 1,
    maxSeqs: layout.sequences,
    numBlocks: layout.sequences * blocksPerSequence(layout),
    blockSize: BLOCK,
    maxBlocksPerSeq: blocksPerSequence(layout),
    vocabSize: 1,
    numSlots: 0,
  }
}

function attentionStep(layout: Layout): Int32Array {
  const { sequences, length, rows } = layout
  const tokens = sequences * rows
  const each = Array.from({ length: sequences }, (_, sequence) => sequence)
  const positions = each.flatMap(() =>
    Array.from({ length: rows }, (_, row) => length - rows + row),
  )
  const slotOf = (position: number, row: number) =>
    blockOf(layout, Math.floor(row / rows), Math.floor(position / BLOCK)) * BLOCK +
    (position % BLOCK)
  const tables = each.flatMap((sequence) =>
    Array.from({ length: blocksPerSequence(layout) }, (_, index) =>
      blockOf(layout, sequence, index),
    ),
  )
  return encodeSections(
    new Map([
      [STEP_SECTION.partBounds, [0, tokens]],
      [STEP_SECTION.tokens, new Array<number>(tokens).fill(0)],
      [STEP_SECTION.positions, positions],
      // The op only reads the cache, but a row without a slot is padding and gives no output.
      [STEP_SECTION.kvSlots, positions.map(slotOf)],
      [STEP_SECTION.seqStarts, [...each.map((sequence) => sequence * rows), tokens]],
      [STEP_SECTION.seqLens, each.map(() => length)],
      [STEP_SECTION.blockTables, tables],
    ]),
  )
}

/** Output of one query head in float64. */
function expectedHead(
  layout: Layout,
  q: Float32Array,
  kv: Float32Array,
  row: number,
  head: number,
): Float64Array {
  const sequence = Math.floor(row / layout.rows)
  const position = layout.length - layout.rows + (row % layout.rows)
  const kvHead = Math.floor((head * KV_HEADS) / HEADS)
  const query = (row * HEADS + head) * HEAD_DIM
  /** Start of a key (0) or value (1) vector in [blocks, 2, kvHeads, block, headDim]. */
  const at = (which: number, key: number) => {
    const block = blockOf(layout, sequence, Math.floor(key / BLOCK))
    return (((block * 2 + which) * KV_HEADS + kvHead) * BLOCK + (key % BLOCK)) * HEAD_DIM
  }
  const scores = Array.from({ length: position + 1 }, (_, key) => {
    let dot = 0
    for (let i = 0; i < HEAD_DIM; i++) dot += q[query + i]! * kv[at(0, key) + i]!
    return dot * SCALE
  })
  const largest = scores.reduce((a, b) => Math.max(a, b))
  const weights = scores.map((score) => Math.exp(score - largest))
  const total = weights.reduce((a, b) => a + b)
  const out = new Float64Array(HEAD_DIM)
  for (const [key, weight] of weights.entries()) {
    for (let i = 0; i < HEAD_DIM; i++) out[i]! += (weight / total) * kv[at(1, key) + i]!
  }
  return out
}

async function runAttention(
  context: BenchContext,
  meter: OpMeter,
  layout: Layout,
  shape: string,
): Promise<BenchRow> {
  const { dtype, ranks } = context
  const limits = attentionLimits(layout)
  const kvElements = limits.numBlocks * 2 * KV_HEADS * BLOCK * HEAD_DIM
  const queries = limits.maxTokens
  const sets = countSets(matrixBytes(1, kvElements, dtype))
  const builder = new ProgramBuilder({ name: 'attention', world: ranks, tp: ranks, limits })
  for (let set = 0; set < sets; set++) {
    const q = builder.arena(`q${set}`, dtype, ['T', HEADS * HEAD_DIM])
    const o = builder.arena(`o${set}`, dtype, ['T', HEADS * HEAD_DIM])
    const kv = builder.kv(`kv${set}`, dtype, KV_HEADS, HEAD_DIM)
    const attrs = { heads: HEADS, kv_heads: KV_HEADS, head_dim: HEAD_DIM, scale: SCALE }
    builder.add(`attention.${set}`, attention({ q, kv, o }, attrs))
  }
  const runtime = await OpRuntime.open(context, [placeApart(builder)], new Map())
  try {
    const q = randomBytes(queries * HEADS * HEAD_DIM, dtype, halfWidthOf(1), 1)
    const kv = randomBytes(kvElements, dtype, halfWidthOf(1), 2)
    for (let rank = 0; rank < ranks; rank++) {
      for (let set = 0; set < sets; set++) {
        await runtime.write(0, `q${set}`, rank, q)
        await runtime.write(-1, `kv${set}`, rank, kv)
      }
    }
    const step = attentionStep(layout)
    await runtime.run(0, step)
    const random = makeRandom(3)
    const [qFloats, kvFloats] = [decodeFloats(q, dtype), decodeFloats(kv, dtype)]
    const outputs: Float32Array[] = []
    for (let rank = 0; rank < ranks; rank++) {
      outputs.push(decodeFloats(await runtime.read(0, `o${sets - 1}`, rank), dtype))
    }
    let wrong = 0
    for (let i = 0; i < CHECKED_HEADS; i++) {
      const [row, head] = [random() % queries, random() % HEADS]
      const expected = expectedHead(layout, qFloats, kvFloats, row, head)
      const start = (row * HEADS + head) * HEAD_DIM
      for (const output of outputs) {
        wrong += countWrong(output.subarray(start, start + HEAD_DIM), expected, dtype)
      }
    }
    const [ours] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
    ])
    const { sequences, length, rows } = layout
    // Row r of a sequence sees length - rows + r + 1 keys.
    const pairs = sequences * (rows * (length - rows) + (rows * (rows + 1)) / 2)
    const element = dtypeBytes(dtype)
    return {
      op: 'attention',
      shape,
      dtype,
      ranks,
      ours: ours!,
      bytes:
        ranks *
        element *
        (sequences * length * 2 * KV_HEADS * HEAD_DIM + 2 * queries * HEADS * HEAD_DIM),
      flops: ranks * 4 * pairs * HEADS * HEAD_DIM,
      memoryPeak: 'read',
      computePeak: dtype,
      checked: ranks * CHECKED_HEADS * HEAD_DIM,
      wrong,
    }
  } finally {
    await runtime.close()
  }
}

function attentionSuite(
  name: string,
  summary: string,
  sizeNames: readonly string[],
  defaultSizes: readonly (readonly number[])[],
  layoutOf: (size: readonly number[]) => Layout,
): BenchSuite {
  return {
    name,
    summary,
    sizeNames,
    defaultSizes,
    settingNames: ['cpuIsa'],
    async run(context) {
      const meter = new OpMeter(context)
      const rows: BenchRow[] = []
      for (const size of context.sizes) {
        context.log(`${name} ${size.join('×')}`)
        rows.push(await runAttention(context, meter, layoutOf(size), size.join('×')))
      }
      return { rows, notes: [meter.note()], details: {} }
    },
  }
}

export const attentionDecodeSuite = attentionSuite(
  'attention-decode',
  'one token of every sequence against its context: KV cache bandwidth',
  ['sequences', 'context tokens'],
  [
    [1, 512],
    [1, 8192],
    [8, 512],
    [8, 2048],
  ],
  ([sequences, length]) => ({ sequences: sequences!, length: length!, rows: 1 }),
)

export const attentionPrefillSuite = attentionSuite(
  'attention-prefill',
  'all tokens of one prompt at once, causal',
  ['tokens'],
  [[128], [512], [2048]],
  ([tokens]) => ({ sequences: 1, length: tokens!, rows: tokens! }),
)
