/**
 * matmul [M, K] · [N, K]ᵀ with a packed weight, by default the shapes of the 0.5 B bench model: one
 * row (decode, bound by reading the weight), a few, and many (prefill, bound by multiply-adds).
 * Every rank multiplies matrices of its own.
 */

import { matmul } from '../../ops/matmul.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { makeRandom } from '../checkpoint.ts'
import { countWrong, dtypeBytes, floatReader, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import {
  countSets,
  matrixBytes,
  OpRuntime,
  placeApart,
  rowLimits,
  rowsStep,
  tryBuild,
  type WeightContents,
  withAttr,
} from '../one-op.ts'
import { backendOf } from '../placement.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

/** Outputs compared with sums in float64; computing all of them would take longer than the bench. */
const CHECKED_OUTPUTS = 512

type FloatReader = (index: number) => number

async function countWrongOutputs(
  runtime: OpRuntime,
  program: number,
  context: BenchContext,
  buffer: string,
  [m, n, k]: readonly [number, number, number],
  x: FloatReader,
  weight: FloatReader,
): Promise<number> {
  const random = makeRandom(3)
  let wrong = 0
  for (let rank = 0; rank < context.ranks; rank++) {
    const y = floatReader(await runtime.read(program, buffer, rank), context.dtype)
    const actual = new Float64Array(CHECKED_OUTPUTS)
    const expected = new Float64Array(CHECKED_OUTPUTS)
    for (let i = 0; i < CHECKED_OUTPUTS; i++) {
      const [row, column] = [random() % m, random() % n]
      for (let j = 0; j < k; j++) expected[i]! += x(row * k + j) * weight(column * k + j)
      actual[i] = y(row * n + column)
    }
    wrong += countWrong(actual, expected, context.dtype)
  }
  return wrong
}

/** A chain of products, one per set of buffers; the same buffers at the same offsets for any choice. */
function buildProgram(
  context: BenchContext,
  [m, n, k]: readonly [number, number, number],
  sets: number,
  implementation: string | undefined,
): Program {
  const { dtype, ranks } = context
  const header = { name: 'matmul', world: ranks, tp: ranks, limits: rowLimits(m) }
  const builder = new ProgramBuilder(header)
  for (let set = 0; set < sets; set++) {
    const x = builder.arena(`x${set}`, dtype, ['T', k])
    const y = builder.arena(`y${set}`, dtype, ['T', n])
    const w = builder.weight(`w${set}`, dtype, [n, k], 'matmul')
    const draft = matmul({ x, weight: w, y })
    builder.add(
      `matmul.${set}`,
      implementation === undefined ? draft : withAttr(draft, 'implementation', implementation),
    )
  }
  return placeApart(builder)
}

/** On a GPU our own kernel and cuBLASLt's stand beside what the op chooses for itself. */
const IMPLEMENTATIONS = { cpu: [], cuda: ['own', 'cublaslt'] } as const
const LIBRARY = 'cublaslt'

async function runMatmul(
  context: BenchContext,
  meter: OpMeter,
  size: readonly number[],
  missing: Set<string>,
): Promise<BenchRow[]> {
  const [m, n, k] = size as [number, number, number]
  const shape = [m, n, k] as const
  const { dtype, ranks } = context
  const bytesPerSet = matrixBytes(n, k, dtype) + matrixBytes(m, k, dtype) + matrixBytes(m, n, dtype)
  const sets = countSets(bytesPerSet, context.device)
  const implementations: readonly string[] = IMPLEMENTATIONS[backendOf(context.device)]
  const weight = randomBytes(n * k, dtype, halfWidthOf(1 / Math.sqrt(k)), 2)
  const contents: WeightContents = new Map(
    Array.from({ length: sets }, (_, set) => [`w${set}`, { dtype, bytes: weight }]),
  )
  const runtime = await OpRuntime.open(
    context,
    [buildProgram(context, shape, sets, undefined)],
    contents,
    implementations.map((name) => tryBuild(() => buildProgram(context, shape, sets, name))),
  )
  try {
    const x = randomBytes(m * k, dtype, halfWidthOf(1), 1)
    const step = rowsStep(m)
    const loaded: { name: string; program: number; wrong: number }[] = []
    for (const [program, name] of ['auto', ...implementations].entries()) {
      const refusal = runtime.refusal(program)
      if (refusal !== undefined) {
        missing.add(`no row for matmul ${name}: ${refusal.message}`)
        continue
      }
      for (let rank = 0; rank < ranks; rank++) {
        for (let set = 0; set < sets; set++) await runtime.write(program, `x${set}`, rank, x)
        await runtime.poison(program, `y${sets - 1}`, rank, matrixBytes(m, n, dtype))
      }
      await runtime.run(program, step)
      const readers = [floatReader(x, dtype), floatReader(weight, dtype)] as const
      const last = `y${sets - 1}`
      const wrong = await countWrongOutputs(runtime, program, context, last, shape, ...readers)
      loaded.push({ name, program, wrong })
    }
    const times = await meter.measure(
      runtime,
      loaded.map(({ name, program }) => ({
        name: name === 'auto' ? 'nanoweave' : name,
        program,
        step,
        ops: sets,
      })),
    )
    const library = loaded.findIndex(({ name }) => name === LIBRARY)
    return loaded.flatMap(({ name, wrong }, index): BenchRow[] => {
      if (name === LIBRARY) return []
      return [
        {
          op: 'matmul',
          ...(name !== 'auto' && { variant: name }),
          shape: shape.join('×'),
          dtype,
          ranks,
          ...(runtime.virtualRanks && { virtualRanks: true }),
          ours: times[index]!,
          ...(library >= 0 && { baseline: times[library]! }),
          bytes: ranks * (n * k + m * k + m * n) * dtypeBytes(dtype),
          flops: ranks * 2 * m * n * k,
          memoryPeak: 'read',
          computePeak: dtype,
          checked: ranks * CHECKED_OUTPUTS * (library < 0 ? 1 : 2),
          wrong: wrong + (loaded[library]?.wrong ?? 0),
        },
      ]
    })
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

/** [N, K] of Llama 3 8B: fused q, k, v; o; gate and up; down; the vocabulary. */
const LLAMA_8B = [
  [6144, 4096],
  [4096, 4096],
  [28672, 4096],
  [4096, 14336],
  [128256, 4096],
] as const

/** [N, K] of one rank of Llama 3 70B over 8: fused q, k, v; o; gate and up; down. */
const LLAMA_70B_TP8 = [
  [1280, 8192],
  [8192, 1024],
  [7168, 8192],
  [8192, 3584],
] as const

export const matmulSuite: BenchSuite = {
  name: 'matmul',
  summary: 'x · Wᵀ with packed weights, one row to many',
  sizeNames: ['M', 'N', 'K'],
  settingNames: ['cpuIsa'],
  defaultSizes: [1, 8, 512].flatMap((m) => MODEL_WEIGHTS.map(([n, k]) => [m, n, k])),
  gpuSizes: [
    [4096, 4096, 4096],
    [8192, 8192, 8192],
    ...[1, 8, 64, 256].flatMap((m) => LLAMA_8B.map(([n, k]) => [m, n, k])),
    ...[64, 2048].flatMap((m) => LLAMA_70B_TP8.map(([n, k]) => [m, n, k])),
  ],
  async run(context) {
    const meter = new OpMeter(context)
    const rows: BenchRow[] = []
    const missing = new Set<string>()
    for (const size of context.sizes) {
      context.log(`matmul ${size.join('×')}`)
      rows.push(...(await runMatmul(context, meter, size, missing)))
    }
    return { rows, notes: [...missing, meter.note()], details: {} }
  },
}
