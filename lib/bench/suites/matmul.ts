/**
 * matmul [M, K] · [N, K]ᵀ with a packed weight, by default the shapes of the 0.5 B bench model: one
 * row (decode, bound by reading the weight), a few, and many (prefill, bound by multiply-adds).
 * Every rank multiplies matrices of its own.
 */

import { matmul } from '../../ops/matmul.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import { makeRandom } from '../checkpoint.ts'
import { countWrong, decodeFloats, dtypeBytes, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import {
  countSets,
  matrixBytes,
  OpRuntime,
  placeApart,
  rowLimits,
  rowsStep,
  type WeightContents,
} from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

/** Outputs compared with sums in float64; computing all of them would take longer than the bench. */
const CHECKED_OUTPUTS = 512

async function countWrongOutputs(
  runtime: OpRuntime,
  context: BenchContext,
  buffer: string,
  [m, n, k]: readonly [number, number, number],
  x: Float32Array,
  weight: Float32Array,
): Promise<number> {
  const random = makeRandom(3)
  let wrong = 0
  for (let rank = 0; rank < context.ranks; rank++) {
    const y = decodeFloats(await runtime.read(0, buffer, rank), context.dtype)
    const actual = new Float64Array(CHECKED_OUTPUTS)
    const expected = new Float64Array(CHECKED_OUTPUTS)
    for (let i = 0; i < CHECKED_OUTPUTS; i++) {
      const [row, column] = [random() % m, random() % n]
      for (let j = 0; j < k; j++) expected[i]! += x[row * k + j]! * weight[column * k + j]!
      actual[i] = y[row * n + column]!
    }
    wrong += countWrong(actual, expected, context.dtype)
  }
  return wrong
}

async function runMatmul(
  context: BenchContext,
  meter: OpMeter,
  size: readonly number[],
): Promise<BenchRow> {
  const [m, n, k] = size as [number, number, number]
  const { dtype, ranks } = context
  const bytesPerSet = matrixBytes(n, k, dtype) + matrixBytes(m, k, dtype) + matrixBytes(m, n, dtype)
  const sets = countSets(bytesPerSet)
  const header = { name: 'matmul', world: ranks, tp: ranks, limits: rowLimits(m) }
  const builder = new ProgramBuilder(header)
  const weight = randomBytes(n * k, dtype, halfWidthOf(1 / Math.sqrt(k)), 2)
  const contents: WeightContents = new Map(
    Array.from({ length: sets }, (_, set) => [`w${set}`, { dtype, bytes: weight }]),
  )
  for (let set = 0; set < sets; set++) {
    const x = builder.arena(`x${set}`, dtype, ['T', k])
    const y = builder.arena(`y${set}`, dtype, ['T', n])
    const w = builder.weight(`w${set}`, dtype, [n, k], 'matmul')
    builder.add(`matmul.${set}`, matmul({ x, weight: w, y }))
  }
  const runtime = await OpRuntime.open(context, [placeApart(builder)], contents)
  try {
    const x = randomBytes(m * k, dtype, halfWidthOf(1), 1)
    for (let rank = 0; rank < ranks; rank++) {
      for (let set = 0; set < sets; set++) await runtime.write(0, `x${set}`, rank, x)
    }
    const step = rowsStep(m)
    await runtime.run(0, step)
    const wrong = await countWrongOutputs(
      runtime,
      context,
      `y${sets - 1}`,
      [m, n, k],
      decodeFloats(x, dtype),
      decodeFloats(weight, dtype),
    )
    const [ours] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
    ])
    return {
      op: 'matmul',
      shape: `${m}×${n}×${k}`,
      dtype,
      ranks,
      ours: ours!,
      bytes: ranks * (n * k + m * k + m * n) * dtypeBytes(dtype),
      flops: ranks * 2 * m * n * k,
      memoryPeak: 'read',
      computePeak: dtype,
      checked: ranks * CHECKED_OUTPUTS,
      wrong,
    }
  } finally {
    await runtime.close()
  }
}

/** [N, K] of the bench model: fused q, k, v; gate and up; down; the vocabulary. */
const MODEL_WEIGHTS = [
  [2048, 1024],
  [9728, 1024],
  [1024, 4864],
  [32000, 1024],
] as const

export const matmulSuite: BenchSuite = {
  name: 'matmul',
  summary: 'x · Wᵀ with packed weights, one row to many',
  sizeNames: ['M', 'N', 'K'],
  settingNames: ['cpuIsa'],
  defaultSizes: [1, 8, 512].flatMap((m) => MODEL_WEIGHTS.map(([n, k]) => [m, n, k])),
  async run(context) {
    const meter = new OpMeter(context)
    const rows: BenchRow[] = []
    for (const size of context.sizes) {
      context.log(`matmul ${size.join('×')}`)
      rows.push(await runMatmul(context, meter, size))
    }
    return { rows, notes: [meter.note()], details: {} }
  },
}
