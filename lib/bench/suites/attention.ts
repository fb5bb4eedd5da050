/**
 * Paged attention with the heads of the 0.5 B bench model (16 query heads over 8 KV heads of 64), on a
 * GPU with those of Llama 3 8B (32 over 8 of 128); `--set heads=32x8x128` names others.
 * `attention-decode`, one new token of every sequence against its whole context, bound by reading
 * the KV cache; `attention-prefill`, all tokens of one prompt at once, bound by multiply-adds.
 */

import { STEP_SECTION } from '../../engine/step.ts'
import { EngineError } from '../../errors.ts'
import { attention } from '../../ops/attention.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program, ProgramLimits } from '../../program/types.ts'
import { makeRandom } from '../checkpoint.ts'
import {
  countWrong,
  decodeFloats,
  dtypeBytes,
  floatReader,
  halfWidthOf,
  randomBytes,
} from '../elements.ts'
import { OpMeter } from '../measure.ts'
import { countSets, encodeSections, matrixBytes, OpRuntime, placeApart } from '../one-op.ts'
import { backendOf } from '../placement.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

const BLOCK = 16
const CHECKED_HEADS = 64

interface Heads {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
}

const DEFAULT_HEADS = {
  cpu: { heads: 16, kvHeads: 8, headDim: 64 },
  cuda: { heads: 32, kvHeads: 8, headDim: 128 },
} as const

/** `32x8x128`: query heads, KV heads, elements of a head. */
function headsOf({ settings, device }: BenchContext): Heads {
  const text = settings.get('heads')
  if (text === undefined) return DEFAULT_HEADS[backendOf(device)]
  const [heads, kvHeads, headDim, more] = text.split('x').map(Number)
  const valid = [heads, kvHeads, headDim].every((n) => Number.isSafeInteger(n) && n! > 0)
  if (!valid || more !== undefined || heads! % kvHeads! !== 0) {
    throw new EngineError('ERR_USAGE', `heads=${text}: expected like 32x8x128, 8 dividing 32`)
  }
  return { heads: heads!, kvHeads: kvHeads!, headDim: headDim! }
}

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

type FloatReader = (index: number) => number

/** Output of one query head in float64. */
function expectedHead(
  layout: Layout,
  { heads, kvHeads, headDim }: Heads,
  q: FloatReader,
  kv: FloatReader,
  row: number,
  head: number,
): Float64Array {
  const sequence = Math.floor(row / layout.rows)
  const position = layout.length - layout.rows + (row % layout.rows)
  const kvHead = Math.floor((head * kvHeads) / heads)
  const query = (row * heads + head) * headDim
  /** Start of a key (0) or value (1) vector in [blocks, 2, kvHeads, block, headDim]. */
  const at = (which: number, key: number) => {
    const block = blockOf(layout, sequence, Math.floor(key / BLOCK))
    return (((block * 2 + which) * kvHeads + kvHead) * BLOCK + (key % BLOCK)) * headDim
  }
  const scores = Array.from({ length: position + 1 }, (_, key) => {
    let dot = 0
    const start = at(0, key)
    for (let i = 0; i < headDim; i++) dot += q(query + i) * kv(start + i)
    return dot / Math.sqrt(headDim)
  })
  const largest = scores.reduce((a, b) => Math.max(a, b))
  const weights = scores.map((score) => Math.exp(score - largest))
  const total = weights.reduce((a, b) => a + b)
  const out = new Float64Array(headDim)
  for (const [key, weight] of weights.entries()) {
    const start = at(1, key)
    for (let i = 0; i < headDim; i++) out[i]! += (weight / total) * kv(start + i)
  }
  return out
}

function buildProgram(context: BenchContext, layout: Layout, shape: Heads, sets: number): Program {
  const { dtype, ranks } = context
  const { heads, kvHeads, headDim } = shape
  const limits = attentionLimits(layout)
  const builder = new ProgramBuilder({ name: 'attention', world: ranks, tp: ranks, limits })
  for (let set = 0; set < sets; set++) {
    const q = builder.arena(`q${set}`, dtype, ['T', heads * headDim])
    const o = builder.arena(`o${set}`, dtype, ['T', heads * headDim])
    const kv = builder.kv(`kv${set}`, dtype, kvHeads, headDim)
    const scale = 1 / Math.sqrt(headDim)
    const attrs = { heads, kv_heads: kvHeads, head_dim: headDim, scale }
    builder.add(`attention.${set}`, attention({ q, kv, o }, attrs))
  }
  return placeApart(builder)
}

interface Filled {
  readonly q: Uint8Array
  readonly kv: Uint8Array
}

/** Random heads of the last set's output against float64; the number of wrong elements. */
async function countWrongHeads(
  runtime: OpRuntime,
  context: BenchContext,
  layout: Layout,
  shape: Heads,
  buffer: string,
  { q, kv }: Filled,
): Promise<number> {
  const { dtype, ranks } = context
  const { heads, headDim } = shape
  const random = makeRandom(3)
  const outputs: Float32Array[] = []
  for (let rank = 0; rank < ranks; rank++) {
    outputs.push(decodeFloats(await runtime.read(0, buffer, rank), dtype))
  }
  const [readQ, readKv] = [floatReader(q, dtype), floatReader(kv, dtype)]
  let wrong = 0
  for (let i = 0; i < CHECKED_HEADS; i++) {
    const [row, head] = [random() % (layout.sequences * layout.rows), random() % heads]
    const expected = expectedHead(layout, shape, readQ, readKv, row, head)
    const start = (row * heads + head) * headDim
    for (const output of outputs) {
      wrong += countWrong(output.subarray(start, start + headDim), expected, dtype)
    }
  }
  return wrong
}

/** Least bytes (each key and value once, queries and outputs) and multiply-adds, one rank. */
function workOf(
  { sequences, length, rows }: Layout,
  { heads, kvHeads, headDim }: Heads,
  element: number,
) {
  // Row r of a sequence sees length - rows + r + 1 keys.
  const pairs = sequences * (rows * (length - rows) + (rows * (rows + 1)) / 2)
  return {
    bytes: element * headDim * (sequences * length * 2 * kvHeads + 2 * sequences * rows * heads),
    flops: 4 * pairs * heads * headDim,
  }
}

async function runAttention(
  context: BenchContext,
  meter: OpMeter,
  layout: Layout,
  shape: string,
): Promise<BenchRow> {
  const { dtype, ranks } = context
  const headShape = headsOf(context)
  const { heads, kvHeads, headDim } = headShape
  const kvElements = attentionLimits(layout).numBlocks * 2 * kvHeads * BLOCK * headDim
  const queries = layout.sequences * layout.rows
  const sets = countSets(matrixBytes(1, kvElements, dtype), context.device)
  const program = buildProgram(context, layout, headShape, sets)
  const runtime = await OpRuntime.open(context, [program], new Map())
  try {
    const q = randomBytes(queries * heads * headDim, dtype, halfWidthOf(1), 1)
    const kv = randomBytes(kvElements, dtype, halfWidthOf(1), 2)
    for (let rank = 0; rank < ranks; rank++) {
      for (let set = 0; set < sets; set++) {
        await runtime.write(0, `q${set}`, rank, q)
        await runtime.write(-1, `kv${set}`, rank, kv)
      }
      await runtime.poison(0, `o${sets - 1}`, rank, q.length)
    }
    const step = attentionStep(layout)
    await runtime.run(0, step)
    const last = `o${sets - 1}`
    const wrong = await countWrongHeads(runtime, context, layout, headShape, last, { q, kv })
    const [ours] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
    ])
    const { bytes, flops } = workOf(layout, headShape, dtypeBytes(dtype))
    return {
      op: 'attention',
      shape,
      dtype,
      ranks,
      ...(runtime.virtualRanks && { virtualRanks: true }),
      ours: ours!,
      bytes: ranks * bytes,
      flops: ranks * flops,
      memoryPeak: 'read',
      computePeak: dtype,
      checked: ranks * CHECKED_HEADS * headDim,
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
  gpuSizes: readonly (readonly number[])[],
  layoutOf: (size: readonly number[]) => Layout,
): BenchSuite {
  return {
    name,
    summary,
    sizeNames,
    defaultSizes,
    gpuSizes,
    settingNames: ['cpuIsa', 'heads'],
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
  [
    [1, 8192],
    [8, 8192],
    [32, 8192],
    [16, 32768],
    [64, 2048],
    [256, 1024],
  ],
  ([sequences, length]) => ({ sequences: sequences!, length: length!, rows: 1 }),
)

export const attentionPrefillSuite = attentionSuite(
  'attention-prefill',
  'all tokens of one prompt at once, causal',
  ['tokens'],
  [[128], [512], [2048]],
  [[1024], [4096], [8192], [16384]],
  ([tokens]) => ({ sequences: 1, length: tokens!, rows: tokens! }),
)
