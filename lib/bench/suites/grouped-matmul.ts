/**
 * grouped_matmul: rows sorted by expert, each times the matrix of its expert, by skew of the rows;
 * against one dense matmul of as many rows (equal operations). Every rank has rows of its own.
 */

import { groupedMatmul } from '../../ops/grouped-matmul.ts'
import { matmul } from '../../ops/matmul.ts'
import { roundUp } from '../../parallel/sharding.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { makeRandom } from '../checkpoint.ts'
import { countWrong, dtypeBytes, floatReader, halfWidthOf, randomBytes } from '../elements.ts'
import { bytesOf, countChoices, drawChoices, SKEWS, type Skew } from '../experts.ts'
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

const CHECKED_OUTPUTS = 512
const PANEL_ROWS = 16

interface Shape {
  readonly rows: number
  readonly experts: number
  readonly width: number
  readonly depth: number
}

/** All buffers of both programs, at the same offsets. */
function buildProgram(context: BenchContext, shape: Shape, sets: number, dense: boolean): Program {
  const { dtype, ranks } = context
  const { rows, experts, width, depth } = shape
  const builder = new ProgramBuilder({
    name: dense ? 'dense' : 'grouped_matmul',
    world: ranks,
    tp: ranks,
    limits: rowLimits(rows),
  })
  const offsets = builder.arena('offsets', 'i32', [experts + 1])
  for (let set = 0; set < sets; set++) {
    const x = builder.arena(`x${set}`, dtype, [rows, depth])
    const y = builder.arena(`y${set}`, dtype, [rows, width])
    const denseX = builder.arena(`dense_x${set}`, dtype, ['T', depth])
    const denseY = builder.arena(`dense_y${set}`, dtype, ['T', width])
    if (dense) {
      const weight = builder.weight(`dense_w${set}`, dtype, [width, depth], 'matmul')
      builder.add(`matmul.${set}`, matmul({ x: denseX, weight, y: denseY }))
    } else {
      const padded = experts * roundUp(width, PANEL_ROWS)
      const weight = builder.weight(`w${set}`, dtype, [padded, depth], 'matmul')
      builder.add(`grouped.${set}`, groupedMatmul({ x, offsets, weight, y }))
    }
  }
  return placeApart(builder)
}

/** Where each expert's rows begin, and where the last one's end. */
function offsetsOf(skew: Skew, rows: number, experts: number): Int32Array {
  const counts = countChoices(
    [drawChoices(skew, { tokens: rows, experts, choices: 1 }, 11)],
    experts,
  )
  if (skew === 'hot') {
    // Half of all rows are one expert's; the others share the rest.
    const others = countChoices(
      [drawChoices('uniform', { tokens: rows - (rows >> 1), experts, choices: 1 }, 12)],
      experts,
    )
    others.forEach((count, expert) => {
      counts[expert] = count + (expert === 0 ? rows >> 1 : 0)
    })
  }
  const offsets = new Int32Array(experts + 1)
  counts.forEach((count, expert) => {
    offsets[expert + 1] = offsets[expert]! + count
  })
  return offsets
}

async function countWrongOutputs(
  runtime: OpRuntime,
  context: BenchContext,
  buffer: string,
  { rows, experts, width, depth }: Shape,
  offsets: Int32Array,
  operands: { x: Uint8Array; weight: Uint8Array },
): Promise<number> {
  const { dtype, ranks } = context
  const [x, weight] = [floatReader(operands.x, dtype), floatReader(operands.weight, dtype)]
  const random = makeRandom(3)
  const padded = roundUp(width, PANEL_ROWS)
  let wrong = 0
  for (let rank = 0; rank < ranks; rank++) {
    const y = floatReader(await runtime.read(0, buffer, rank), dtype)
    const actual = new Float64Array(CHECKED_OUTPUTS)
    const expected = new Float64Array(CHECKED_OUTPUTS)
    for (let i = 0; i < CHECKED_OUTPUTS; i++) {
      const [row, column] = [random() % rows, random() % width]
      let expert = 0
      while (expert + 1 < experts && offsets[expert + 1]! <= row) expert++
      const w = (expert * padded + column) * depth
      for (let j = 0; j < depth; j++) expected[i]! += x(row * depth + j) * weight(w + j)
      actual[i] = y(row * width + column)
    }
    wrong += countWrong(actual, expected, dtype)
  }
  return wrong
}

async function runGrouped(
  context: BenchContext,
  meter: OpMeter,
  shape: Shape,
  skew: Skew,
): Promise<BenchRow> {
  const { dtype, ranks } = context
  const { rows, experts, width, depth } = shape
  const padded = roundUp(width, PANEL_ROWS)
  const bytesPerSet = matrixBytes(experts * padded, depth, dtype)
  const sets = countSets(bytesPerSet, context.device)
  const weight = randomBytes(experts * padded * depth, dtype, halfWidthOf(1 / Math.sqrt(depth)), 2)
  const denseWeight = weight.subarray(0, matrixBytes(width, depth, dtype))
  const contents: WeightContents = new Map(
    Array.from({ length: sets }, (_, set) => set).flatMap((set) => [
      [`w${set}`, { dtype, bytes: weight }] as const,
      [`dense_w${set}`, { dtype, bytes: denseWeight }] as const,
    ]),
  )
  const programs = [false, true].map((dense) => buildProgram(context, shape, sets, dense))
  const runtime = await OpRuntime.open(context, programs, contents)
  try {
    const offsets = offsetsOf(skew, rows, experts)
    const x = randomBytes(rows * depth, dtype, halfWidthOf(1), 1)
    for (let rank = 0; rank < ranks; rank++) {
      await runtime.write(0, 'offsets', rank, bytesOf(offsets))
      for (let set = 0; set < sets; set++) {
        await runtime.write(0, `x${set}`, rank, x)
        await runtime.write(1, `dense_x${set}`, rank, x)
      }
      await runtime.poison(0, `y${sets - 1}`, rank, matrixBytes(rows, width, dtype))
    }
    const step = rowsStep(rows)
    await runtime.run(0, step)
    const last = `y${sets - 1}`
    const wrong = await countWrongOutputs(runtime, context, last, shape, offsets, { x, weight })
    const [ours, dense] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
      { name: 'dense matmul', program: 1, step, ops: sets },
    ])
    const active = offsets.filter((offset, e) => e > 0 && offset > offsets[e - 1]!).length
    return {
      op: 'grouped_matmul',
      variant: skew,
      shape: `${rows}×${width}×${depth}, ${experts} experts`,
      dtype,
      ranks,
      ...(runtime.virtualRanks && { virtualRanks: true }),
      ours: ours!,
      baseline: dense!,
      bytes: ranks * (active * width * depth + rows * (width + depth)) * dtypeBytes(dtype),
      flops: ranks * 2 * rows * width * depth,
      memoryPeak: 'read',
      computePeak: dtype,
      checked: ranks * CHECKED_OUTPUTS,
      wrong,
    }
  } finally {
    await runtime.close()
  }
}

export const groupedMatmulSuite: BenchSuite = {
  name: 'grouped-matmul',
  summary:
    'rows times the matrices of their experts, by skew, against a dense matmul of as many rows',
  sizeNames: ['rows', 'experts', 'width', 'depth'],
  settingNames: ['cpuIsa'],
  defaultSizes: [
    [8, 32, 1024, 1024],
    [64, 32, 1024, 1024],
    [512, 32, 1024, 1024],
  ],
  gpuSizes: [
    [8, 128, 1536, 2048],
    [256, 128, 1536, 2048],
    [1024, 32, 4096, 7168],
    [32768, 32, 4096, 7168],
  ],
  async run(context) {
    const meter = new OpMeter(context)
    const results: BenchRow[] = []
    for (const size of context.sizes) {
      const [rows, experts, width, depth] = size as [number, number, number, number]
      for (const skew of SKEWS) {
        context.log(`grouped-matmul ${size.join('×')} ${skew}`)
        results.push(await runGrouped(context, meter, { rows, experts, width, depth }, skew))
      }
    }
    return { rows: results, notes: [meter.note()], details: {} }
  },
}
