/**
 * Row ops on [T, H]: `copy`, which shows what the runtime gets of the memory bandwidth, and
 * `rms-norm`, the norm alone and with the residual add. Every rank works on buffers of its own.
 */

import { addRmsNorm } from '../../ops/add-rms-norm.ts'
import { copy } from '../../ops/copy.ts'
import { rmsNorm } from '../../ops/rms-norm.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import { countWrong, decodeFloats, dtypeBytes, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import { countSets, matrixBytes, OpRuntime, placeApart, rowLimits, rowsStep } from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

const EPS = 1e-5

interface RowOp {
  readonly op: 'copy' | 'rms_norm' | 'add_rms_norm'
  /** Matrices of [T, H] read and written by one op. */
  readonly matrices: number
  readonly flopsPerElement: number
}

const COPY: RowOp = { op: 'copy', matrices: 2, flopsPerElement: 0 }
const RMS_NORM: RowOp = { op: 'rms_norm', matrices: 2, flopsPerElement: 4 }
const ADD_RMS_NORM: RowOp = { op: 'add_rms_norm', matrices: 4, flopsPerElement: 5 }

function buildProgram(context: BenchContext, { op, matrices }: RowOp, rows: number, width: number) {
  const { dtype, ranks } = context
  const sets = countSets(matrices * matrixBytes(rows, width, dtype), context.device)
  const header = { name: op, world: ranks, tp: ranks, limits: rowLimits(rows) }
  const builder = new ProgramBuilder(header)
  const weight = op === 'copy' ? -1 : builder.weight('weight', 'f32', [width], 'plain')
  for (let set = 0; set < sets; set++) {
    const x = builder.arena(`x${set}`, dtype, ['T', width])
    const y = builder.arena(`y${set}`, dtype, ['T', width])
    if (op === 'copy') builder.add(`${op}.${set}`, copy({ x, y }))
    else if (op === 'rms_norm') builder.add(`${op}.${set}`, rmsNorm({ x, weight, y }, { eps: EPS }))
    else {
      const residual = builder.arena(`residual${set}`, dtype, ['T', width])
      builder.add(`${op}.${set}`, addRmsNorm({ x, residual, weight, y }, { eps: EPS }))
    }
  }
  return { program: placeApart(builder), sets }
}

/** What y must be, from the values of x (and of the residual, which starts at zero). */
function expectedRows(op: RowOp['op'], x: Float32Array, weight: Float32Array): Float32Array {
  if (op === 'copy') return x
  const width = weight.length
  const y = new Float32Array(x.length)
  for (let row = 0; row < x.length; row += width) {
    let squares = 0
    for (let i = 0; i < width; i++) squares += x[row + i]! ** 2
    const scale = 1 / Math.sqrt(squares / width + EPS)
    for (let i = 0; i < width; i++) y[row + i] = x[row + i]! * scale * weight[i]!
  }
  return y
}

async function runRowOp(
  context: BenchContext,
  meter: OpMeter,
  rowOp: RowOp,
  [rows, width]: readonly number[],
): Promise<BenchRow> {
  const { dtype, ranks } = context
  const { op, matrices, flopsPerElement } = rowOp
  const { program, sets } = buildProgram(context, rowOp, rows!, width!)
  const weight = randomBytes(width!, 'f32', 1, 2)
  const contents = new Map([['weight', { dtype: 'f32' as const, bytes: weight }]])
  const runtime = await OpRuntime.open(context, [program], op === 'copy' ? new Map() : contents)
  try {
    const x = randomBytes(rows! * width!, dtype, halfWidthOf(1), 1)
    const zeros = new Uint8Array(x.length)
    for (let rank = 0; rank < ranks; rank++) {
      for (let set = 0; set < sets; set++) {
        await runtime.write(0, `x${set}`, rank, x)
        if (op === 'add_rms_norm') await runtime.write(0, `residual${set}`, rank, zeros)
      }
    }
    const step = rowsStep(rows!)
    for (let rank = 0; rank < ranks; rank++) {
      await runtime.poison(0, `y${sets - 1}`, rank, x.length)
    }
    await runtime.run(0, step)
    const expected = expectedRows(op, decodeFloats(x, dtype), decodeFloats(weight, 'f32'))
    let wrong = 0
    for (let rank = 0; rank < ranks; rank++) {
      const y = decodeFloats(await runtime.read(0, `y${sets - 1}`, rank), dtype)
      wrong += countWrong(y, expected, dtype)
    }
    const [ours] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
    ])
    return {
      op,
      shape: `${rows}×${width}`,
      dtype,
      ranks,
      ...(runtime.virtualRanks && { virtualRanks: true }),
      ours: ours!,
      bytes: ranks * matrices * rows! * width! * dtypeBytes(dtype),
      flops: ranks * flopsPerElement * rows! * width!,
      memoryPeak: 'copy',
      computePeak: 'f32',
      checked: ranks * expected.length,
      wrong,
    }
  } finally {
    await runtime.close()
  }
}

function rowSuite(
  name: string,
  summary: string,
  ops: readonly RowOp[],
  defaultSizes: readonly (readonly number[])[],
  gpuSizes: readonly (readonly number[])[],
): BenchSuite {
  return {
    name,
    summary,
    sizeNames: ['rows', 'width'],
    defaultSizes,
    gpuSizes,
    settingNames: ['cpuIsa'],
    async run(context) {
      const meter = new OpMeter(context)
      const rows: BenchRow[] = []
      for (const op of ops) {
        for (const size of context.sizes) {
          context.log(`${op.op} ${size.join('×')}`)
          rows.push(await runRowOp(context, meter, op, size))
        }
      }
      return { rows, notes: [meter.note()], details: {} }
    },
  }
}

export const copySuite = rowSuite(
  'copy',
  'copy of [rows, width]: memory bandwidth',
  [COPY],
  [
    [512, 1024],
    [4096, 4096],
  ],
  [
    [4096, 4096],
    [16384, 8192],
    [65536, 16384],
  ],
)

export const rmsNormSuite = rowSuite(
  'rms-norm',
  'rms_norm and add_rms_norm over [rows, width]',
  [RMS_NORM, ADD_RMS_NORM],
  [
    [1, 1024],
    [64, 1024],
    [512, 1024],
    [512, 4096],
  ],
  [
    [1, 4096],
    [64, 4096],
    [256, 8192],
    [2048, 4096],
    [8192, 8192],
  ],
)
