/**
 * moe_dispatch and moe_combine together, without experts in between: tokens to the ranks of their
 * experts and back. Each rank is an attention group with tokens of its own, and has its share of the
 * experts. Bytes are the least that must move: a row is read once and written once per distinct rank
 * it goes to, read there once and written once per choice; each choice is fetched, each token written.
 */

import { imbalance } from '../../parallel/balance/eplb.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { countWrong, decodeFloats, dtypeBytes, halfWidthOf, randomBytes } from '../elements.ts'
import {
  addExpertBlock,
  bytesOf,
  countChoices,
  declareReceived,
  drawChoices,
  type ExpertBlockShape,
  SKEWS,
  type Skew,
  sumsOf,
} from '../experts.ts'
import { OpMeter } from '../measure.ts'
import { countSets, matrixBytes, OpRuntime, placeApart, rowLimits, rowsStep } from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

function buildProgram(shape: ExpertBlockShape, sets: number): Program {
  const { tokens, hidden, targets, choices, ranks, dtype } = shape
  const builder = new ProgramBuilder({
    name: 'moe_dispatch',
    world: ranks,
    tp: 1,
    limits: rowLimits(tokens),
  })
  const buffers = {
    ...declareReceived(builder, shape),
    offsets: builder.arena('offsets', 'i32', [Math.ceil(targets / ranks) + 1]),
  }
  for (let set = 0; set < sets; set++) {
    const operands = {
      x: builder.arena(`x${set}`, dtype, ['T', hidden]),
      ids: builder.arena(`ids${set}`, 'i32', ['T', choices]),
      weights: builder.arena(`weights${set}`, 'f32', ['T', choices]),
      y: builder.arena(`y${set}`, dtype, ['T', hidden]),
    }
    addExpertBlock(builder, `${set}`, { ...operands, ...buffers }, shape, (grouped) => grouped)
  }
  return placeApart(builder)
}

/** Rows that move between and inside of ranks. */
function countRows(ids: readonly Int32Array[], { targets, choices, ranks }: ExpertBlockShape) {
  const perRank = Math.ceil(targets / ranks)
  let sent = 0
  let tokens = 0
  for (const group of ids) {
    for (let at = 0; at < group.length; at += choices, tokens++) {
      const positions = group.subarray(at, at + choices).map((id) => Math.floor(id / perRank))
      sent += new Set(positions).size
    }
  }
  return { sent, tokens, chosen: tokens * choices }
}

async function runDispatch(
  context: BenchContext,
  meter: OpMeter,
  shape: ExpertBlockShape,
  skew: Skew,
): Promise<{ row: BenchRow; note: string }> {
  const { tokens, hidden, targets, choices, ranks, dtype } = shape
  const sets = countSets(2 * matrixBytes(tokens, hidden, dtype), context.device)
  const runtime = await OpRuntime.open(context, [buildProgram(shape, sets)], new Map())
  try {
    const draw = { tokens, experts: targets, choices }
    const ids = Array.from({ length: ranks }, (_, rank) => drawChoices(skew, draw, 100 + rank))
    const weights = decodeFloats(randomBytes(tokens * choices, 'f32', 1, 7), 'f32')
    const x = randomBytes(tokens * hidden, dtype, halfWidthOf(1), 1)
    for (let rank = 0; rank < ranks; rank++) {
      for (let set = 0; set < sets; set++) {
        await runtime.write(0, `x${set}`, rank, x)
        await runtime.write(0, `ids${set}`, rank, bytesOf(ids[rank]!))
        await runtime.write(0, `weights${set}`, rank, bytesOf(weights))
      }
      await runtime.poison(0, `y${sets - 1}`, rank, matrixBytes(tokens, hidden, dtype))
    }
    const step = rowsStep(tokens, ranks)
    await runtime.run(0, step)
    // Experts give back what they get: y = x · Σ weights.
    const expected = decodeFloats(x, dtype).map((value, i) => {
      const token = Math.floor(i / hidden)
      const mine = weights.subarray(token * choices, (token + 1) * choices)
      return value * mine.reduce((a, b) => a + b, 0)
    })
    let wrong = 0
    for (let rank = 0; rank < ranks; rank++) {
      const y = decodeFloats(await runtime.read(0, `y${sets - 1}`, rank), dtype)
      wrong += countWrong(y, expected, dtype)
    }
    const [time] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
    ])
    const moved = countRows(ids, shape)
    const loads = sumsOf(countChoices(ids, targets), Math.ceil(targets / ranks))
    const rows = 3 * moved.sent + 2 * moved.chosen + 2 * moved.tokens
    const name = `${tokens}×${hidden}, ${choices} of ${targets}`
    return {
      note: `${name}, ${skew}: the busiest rank has ${imbalance(loads).toFixed(2)} of the mean`,
      row: {
        op: 'moe_dispatch, moe_combine',
        variant: skew,
        shape: name,
        dtype,
        ranks,
        ...(runtime.virtualRanks && { virtualRanks: true }),
        ours: time!,
        bytes: rows * hidden * dtypeBytes(dtype),
        flops: 2 * moved.chosen * hidden,
        memoryPeak: 'copy',
        computePeak: 'f32',
        checked: ranks * expected.length,
        wrong,
      },
    }
  } finally {
    await runtime.close()
  }
}

export const moeDispatchSuite: BenchSuite = {
  name: 'moe-dispatch',
  summary: 'tokens to the ranks of their experts and back, by skew of the choices',
  sizeNames: ['tokens', 'hidden', 'experts', 'choices'],
  settingNames: ['cpuIsa'],
  defaultSizes: [
    [1, 1024, 64, 8],
    [64, 1024, 64, 8],
    [512, 1024, 64, 8],
  ],
  gpuSizes: [
    [1, 7168, 256, 8],
    [128, 7168, 256, 8],
    [4096, 7168, 256, 8],
  ],
  async run(context) {
    const meter = new OpMeter(context)
    const rows: BenchRow[] = []
    const notes: string[] = []
    const { ranks, dtype } = context
    for (const size of context.sizes) {
      const [tokens, hidden, targets, choices] = size as [number, number, number, number]
      for (const skew of SKEWS) {
        context.log(`moe-dispatch ${size.join('×')} ${skew}, ${ranks} ranks`)
        const shape = { tokens, hidden, targets, choices, ranks, dtype }
        const { row, note } = await runDispatch(context, meter, shape, skew)
        rows.push(row)
        notes.push(note)
      }
    }
    return { rows, notes: [...notes, meter.note()], details: {} }
  },
}
