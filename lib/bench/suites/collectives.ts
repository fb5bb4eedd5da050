/**
 * Collectives over the ranks: `all-reduce`, and `all-reduce-rms-norm`, the fused sum + residual +
 * norm against all_reduce followed by add_rms_norm on the same buffers. Bytes are those of a
 * two-shot algorithm (each rank reads one row share of every partial and writes its result to all),
 * the least that must move; a one-shot form at few rows moves more.
 */

import { addRmsNorm } from '../../ops/add-rms-norm.ts'
import { allReduce } from '../../ops/all-reduce.ts'
import { allReduceRmsNorm } from '../../ops/all-reduce-rms-norm.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { countWrong, decodeFloats, dtypeBytes, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import { countSets, matrixBytes, OpRuntime, placeApart, rowLimits, rowsStep } from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

const EPS = 1e-5

type Kind = 'all_reduce' | 'fused' | 'unfused'

/** The same buffers at the same offsets for every kind. */
function buildProgram(
  context: BenchContext,
  kind: Kind,
  rows: number,
  width: number,
  sets: number,
): Program {
  const { dtype, ranks } = context
  const header = { name: kind, world: ranks, tp: ranks, limits: rowLimits(rows) }
  const builder = new ProgramBuilder(header)
  const weight = kind === 'all_reduce' ? -1 : builder.weight('weight', 'f32', [width], 'plain')
  for (let set = 0; set < sets; set++) {
    const partial = builder.arena(`partial${set}`, dtype, ['T', width])
    const y = builder.arena(`y${set}`, dtype, ['T', width])
    if (kind === 'all_reduce') {
      builder.add(`all_reduce.${set}`, allReduce({ x: partial, y }))
      continue
    }
    const residual = builder.arena(`residual${set}`, dtype, ['T', width])
    if (kind === 'fused') {
      builder.add(`fused.${set}`, allReduceRmsNorm({ partial, residual, weight, y }, { eps: EPS }))
      continue
    }
    const sum = builder.arena(`sum${set}`, dtype, ['T', width])
    builder.add(`all_reduce.${set}`, allReduce({ x: partial, y: sum }))
    builder.add(`add_rms_norm.${set}`, addRmsNorm({ x: sum, residual, weight, y }, { eps: EPS }))
  }
  return placeApart(builder)
}

/** Sum of all partials, normalised when there is a weight (the residual starts at zero). */
function expectedSum(
  partials: readonly Float32Array[],
  weight: Float32Array | undefined,
): Float32Array {
  const sum = new Float32Array(partials[0]!.length)
  for (const partial of partials) for (let i = 0; i < sum.length; i++) sum[i]! += partial[i]!
  if (weight === undefined) return sum
  const width = weight.length
  for (let row = 0; row < sum.length; row += width) {
    let squares = 0
    for (let i = 0; i < width; i++) squares += sum[row + i]! ** 2
    const scale = 1 / Math.sqrt(squares / width + EPS)
    for (let i = 0; i < width; i++) sum[row + i]! *= scale * weight[i]!
  }
  return sum
}

async function runCollective(
  context: BenchContext,
  meter: OpMeter,
  kinds: readonly Kind[],
  [rows, width]: readonly number[],
): Promise<BenchRow> {
  const { dtype, ranks } = context
  const fused = kinds[0] === 'fused'
  const sets = countSets((fused ? 3 : 2) * matrixBytes(rows!, width!, dtype))
  const programs = kinds.map((kind) => buildProgram(context, kind, rows!, width!, sets))
  const weight = randomBytes(width!, 'f32', 1, 2)
  const contents = new Map([['weight', { dtype: 'f32' as const, bytes: weight }]])
  const runtime = await OpRuntime.open(context, programs, fused ? contents : new Map())
  try {
    const partials = Array.from({ length: ranks }, (_, rank) =>
      randomBytes(rows! * width!, dtype, halfWidthOf(1), 10 + rank),
    )
    const zeros = new Uint8Array(partials[0]!.length)
    const step = rowsStep(rows!)
    const expected = expectedSum(
      partials.map((partial) => decodeFloats(partial, dtype)),
      fused ? decodeFloats(weight, 'f32') : undefined,
    )
    let wrong = 0
    for (let program = 0; program < programs.length; program++) {
      for (let rank = 0; rank < ranks; rank++) {
        for (let set = 0; set < sets; set++) {
          await runtime.write(program, `partial${set}`, rank, partials[rank]!)
          if (fused) await runtime.write(program, `residual${set}`, rank, zeros)
        }
      }
      await runtime.run(program, step)
      for (let rank = 0; rank < ranks; rank++) {
        const y = decodeFloats(await runtime.read(program, `y${sets - 1}`, rank), dtype)
        wrong += countWrong(y, expected, dtype)
      }
    }
    const [ours, baseline] = await meter.measure(
      runtime,
      kinds.map((kind, program) => ({
        name: program === 0 ? 'nanoweave' : kind,
        program,
        step,
        ops: sets,
      })),
    )
    const matrix = rows! * width! * dtypeBytes(dtype)
    return {
      op: fused ? 'all_reduce_rms_norm' : 'all_reduce',
      shape: `${rows}×${width}`,
      dtype,
      ranks,
      ours: ours!,
      ...(baseline !== undefined && { baseline }),
      bytes: 2 * ranks * matrix + (fused ? 2 * matrix : 0),
      flops: (ranks + (fused ? 5 : 0)) * rows! * width!,
      memoryPeak: 'copy',
      computePeak: 'f32',
      checked: kinds.length * ranks * expected.length,
      wrong,
    }
  } finally {
    await runtime.close()
  }
}

function collectiveSuite(name: string, summary: string, kinds: readonly Kind[]): BenchSuite {
  return {
    name,
    summary,
    sizeNames: ['rows', 'width'],
    defaultSizes: [
      [1, 1024],
      [8, 1024],
      [64, 1024],
      [512, 1024],
      [512, 4096],
    ],
    settingNames: ['cpuIsa'],
    async run(context) {
      const meter = new OpMeter(context)
      const rows: BenchRow[] = []
      for (const size of context.sizes) {
        context.log(`${name} ${size.join('×')}, ${context.ranks} ranks`)
        rows.push(await runCollective(context, meter, kinds, size))
      }
      return { rows, notes: [meter.note()], details: {} }
    },
  }
}

export const allReduceSuite = collectiveSuite('all-reduce', 'sum of [rows, width] over the ranks', [
  'all_reduce',
])

export const allReduceRmsNormSuite = collectiveSuite(
  'all-reduce-rms-norm',
  'fused sum + residual + norm, against all_reduce then add_rms_norm',
  ['fused', 'unfused'],
)
