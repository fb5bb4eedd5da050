/**
 * A layer of routed experts over the ranks: route, dispatch, gate and up, activation, down, combine.
 * Each rank is an attention group with tokens of its own and holds its share of the experts. By skew of
 * the choices, with experts where they are loaded and as EPLB places them (a quarter more slots, loads
 * of the very choices); the second stands against the first. The table look-up that turns experts into
 * slots is not in the time: choices come as slots.
 */

import { groupedGlu } from '../../ops/grouped-glu.ts'
import { groupedMatmul } from '../../ops/grouped-matmul.ts'
import { moeRoute } from '../../ops/moe-route.ts'
import { balanceExperts, imbalance } from '../../parallel/balance/eplb.ts'
import { roundUp } from '../../parallel/sharding.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { countWrong, dtypeBytes, floatReader, halfWidthOf, randomBytes } from '../elements.ts'
import {
  addExpertBlock,
  bytesOf,
  countChoices,
  declareReceived,
  drawChoices,
  type ExpertBlockShape,
  mostGroupedRows,
  SKEWS,
  type Skew,
  sumsOf,
} from '../experts.ts'
import { OpMeter } from '../measure.ts'
import {
  matrixBytes,
  OpRuntime,
  placeApart,
  rowLimits,
  rowsStep,
  type WeightContents,
} from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

const PANEL_ROWS = 16
const SETS = 2
/** Outputs of one token of each rank that are compared with float64. */
const CHECKED_COLUMNS = 16

interface Layer {
  readonly tokens: number
  readonly hidden: number
  readonly width: number
  readonly experts: number
  readonly choices: number
}

/** Where experts are: of each slot, those of a rank side by side. */
interface Placing {
  readonly name: string
  readonly expertOf: readonly number[]
}

function placings(loads: readonly number[], experts: number, ranks: number): Placing[] {
  const slots = roundUp(experts, ranks)
  const home = { name: 'in place', expertOf: Array.from({ length: slots }, (_, slot) => slot) }
  if (ranks === 1) return [home]
  const layout = { slots: roundUp(Math.ceil(experts * 1.25), ranks), ranks, nodes: 1, groups: 1 }
  return [home, { name: 'balanced', expertOf: balanceExperts(loads, layout) }]
}

/** Replicas of an expert take its tokens in turn. */
function slotsOf(ids: Int32Array, choices: number, { expertOf }: Placing): Int32Array {
  const replicas = new Map<number, number[]>()
  expertOf.forEach((expert, slot) => {
    replicas.set(expert, [...(replicas.get(expert) ?? []), slot])
  })
  return ids.map((id, i) => {
    const slots = replicas.get(id)!
    return slots[Math.floor(i / choices) % slots.length]!
  })
}

function blockShape(context: BenchContext, layer: Layer, targets: number): ExpertBlockShape {
  const { tokens, hidden, choices } = layer
  return { tokens, hidden, targets, choices, ranks: context.ranks, dtype: context.dtype }
}

/** The same buffers at the same offsets for every placing, but for the choices and offsets. */
function buildProgram(
  context: BenchContext,
  layer: Layer,
  all: readonly Placing[],
  which: number,
): Program {
  const { dtype, ranks } = context
  const { tokens, hidden, width, experts, choices } = layer
  const targets = all[which]!.expertOf.length
  const shape = blockShape(context, layer, targets)
  const builder = new ProgramBuilder({
    name: `moe_layer ${all[which]!.name}`,
    world: ranks,
    tp: 1,
    limits: rowLimits(tokens),
  })
  const received = declareReceived(builder, shape)
  const rows = mostGroupedRows(shape)
  const gateUp = builder.arena('gate_up', dtype, [rows, 2 * width])
  const act = builder.arena('act', dtype, [rows, width])
  const down = builder.arena('down', dtype, [rows, hidden])
  const local = targets / ranks
  const weight = (name: string, out: number, depth: number) =>
    builder.weight(`${name}${which}`, dtype, [local * roundUp(out, PANEL_ROWS), depth], 'matmul')
  const [gateUpWeight, downWeight] = [
    weight('gate_up_w', 2 * width, hidden),
    weight('down_w', hidden, width),
  ]
  const slots = all.map((_, i) =>
    Array.from({ length: SETS }, (_, set) =>
      builder.arena(`slots${i}.${set}`, 'i32', ['T', choices]),
    ),
  )
  const offsets = all.map(({ expertOf }, i) =>
    builder.arena(`offsets${i}`, 'i32', [expertOf.length / ranks + 1]),
  )[which]!
  for (let set = 0; set < SETS; set++) {
    const logits = builder.arena(`logits${set}`, 'f32', ['T', experts])
    const ids = builder.arena(`ids${set}`, 'i32', ['T', choices])
    const weights = builder.arena(`weights${set}`, 'f32', ['T', choices])
    const x = builder.arena(`x${set}`, dtype, ['T', hidden])
    const y = builder.arena(`y${set}`, dtype, ['T', hidden])
    const attrs = { score: 'softmax', normalise: true } as const
    builder.add(`route.${set}`, moeRoute({ logits, ids, weights }, attrs))
    const operands = { x, ids: slots[which]![set]!, weights, y, ...received, offsets }
    addExpertBlock(builder, `${set}`, operands, shape, (grouped) => {
      builder.add(
        `gate_up.${set}`,
        groupedMatmul({ x: grouped, offsets, weight: gateUpWeight, y: gateUp }),
      )
      builder.add(`act.${set}`, groupedGlu({ gateUp, offsets, y: act }, { activation: 'silu' }))
      builder.add(`down.${set}`, groupedMatmul({ x: act, offsets, weight: downWeight, y: down }))
      return down
    })
  }
  return placeApart(builder)
}

/** Logits whose softmax picks these ids in this order: weights fall from choice to choice. */
function logitsOf(ids: Int32Array, { experts, choices }: Layer): Float32Array {
  const logits = new Float32Array((ids.length / choices) * experts)
  ids.forEach((id, i) => {
    logits[Math.floor(i / choices) * experts + id] = 4 - (2 * (i % choices)) / choices
  })
  return logits
}

function routeWeights(choices: number): number[] {
  const exps = Array.from({ length: choices }, (_, j) => Math.exp(-(2 * j) / choices))
  const sum = exps.reduce((a, b) => a + b, 0)
  return exps.map((value) => value / sum)
}

/** Weights are the same on all ranks: a slot's matrices are those of its place in its rank. */
function expectedOutputs(
  { hidden, width, choices }: Layer,
  slots: Int32Array,
  local: number,
  token: number,
  read: { x: (i: number) => number; gateUp: (i: number) => number; down: (i: number) => number },
): Float64Array {
  const y = new Float64Array(CHECKED_COLUMNS)
  const act = new Float64Array(width)
  const [gateRows, downRows] = [roundUp(2 * width, PANEL_ROWS), roundUp(hidden, PANEL_ROWS)]
  const weights = routeWeights(choices)
  const dot = (row: number) => {
    let sum = 0
    for (let k = 0; k < hidden; k++)
      sum += read.x(token * hidden + k) * read.gateUp(row * hidden + k)
    return sum
  }
  for (let j = 0; j < choices; j++) {
    const place = slots[token * choices + j]! % local
    for (let i = 0; i < width; i++) {
      const gate = dot(place * gateRows + i)
      act[i] = (gate / (1 + Math.exp(-gate))) * dot(place * gateRows + width + i)
    }
    for (let column = 0; column < CHECKED_COLUMNS; column++) {
      const row = (place * downRows + column) * width
      let sum = 0
      for (let i = 0; i < width; i++) sum += act[i]! * read.down(row + i)
      y[column]! += weights[j]! * sum
    }
  }
  return y
}

interface Measurement {
  readonly rows: readonly BenchRow[]
  readonly notes: readonly string[]
}

async function runLayer(
  context: BenchContext,
  meter: OpMeter,
  layer: Layer,
  skew: Skew,
): Promise<Measurement> {
  const { dtype, ranks } = context
  const { tokens, hidden, width, experts, choices } = layer
  const ids = Array.from({ length: ranks }, (_, rank) => drawChoices(skew, layer, 100 + rank))
  const all = placings(countChoices(ids, experts), experts, ranks)
  const most = Math.max(...all.map(({ expertOf }) => expertOf.length)) / ranks
  const random = (rows: number, depth: number, seed: number) =>
    randomBytes(most * rows * depth, dtype, halfWidthOf(1 / Math.sqrt(depth)), seed)
  const [gateRows, downRows] = [roundUp(2 * width, PANEL_ROWS), roundUp(hidden, PANEL_ROWS)]
  const [gateUp, down] = [random(gateRows, hidden, 2), random(downRows, width, 3)]
  const contents: WeightContents = new Map(
    all.flatMap(({ expertOf }, i) => {
      const local = expertOf.length / ranks
      const part = (bytes: Uint8Array) => bytes.subarray(0, (bytes.length / most) * local)
      return [
        [`gate_up_w${i}`, { dtype, bytes: part(gateUp) }] as const,
        [`down_w${i}`, { dtype, bytes: part(down) }] as const,
      ]
    }),
  )
  const programs = all.map((_, i) => buildProgram(context, layer, all, i))
  const runtime = await OpRuntime.open(context, programs, contents)
  try {
    const x = randomBytes(tokens * hidden, dtype, halfWidthOf(1), 1)
    const step = rowsStep(tokens, ranks)
    const read = {
      x: floatReader(x, dtype),
      gateUp: floatReader(gateUp, dtype),
      down: floatReader(down, dtype),
    }
    const wrongs: number[] = []
    const loads: number[][] = []
    for (const [program, placing] of all.entries()) {
      const slots = ids.map((group) => slotsOf(group, choices, placing))
      const local = placing.expertOf.length / ranks
      loads.push(sumsOf(countChoices(slots, placing.expertOf.length), local))
      for (let rank = 0; rank < ranks; rank++) {
        for (let set = 0; set < SETS; set++) {
          await runtime.write(program, `x${set}`, rank, x)
          await runtime.write(program, `logits${set}`, rank, bytesOf(logitsOf(ids[rank]!, layer)))
          await runtime.write(program, `slots${program}.${set}`, rank, bytesOf(slots[rank]!))
        }
        await runtime.poison(program, `y${SETS - 1}`, rank, matrixBytes(tokens, hidden, dtype))
      }
      await runtime.run(program, step)
      let wrong = 0
      for (let rank = 0; rank < ranks; rank++) {
        const token = (rank * 7) % tokens
        const y = floatReader(await runtime.read(program, `y${SETS - 1}`, rank), dtype)
        const actual = Float64Array.from({ length: CHECKED_COLUMNS }, (_, i) =>
          y(token * hidden + i),
        )
        const expected = expectedOutputs(layer, slots[rank]!, local, token, read)
        wrong += countWrong(actual, expected, dtype)
      }
      wrongs.push(wrong)
    }
    const times = await meter.measure(
      runtime,
      all.map(({ name }, program) => ({ name, program, step, ops: SETS })),
    )
    const chosen = ranks * tokens * choices
    const sizes = [tokens, hidden, width, experts, choices].join('×')
    const shape = ranks === 1 ? sizes : `${ranks}·${sizes}`
    return {
      notes: all.map(
        ({ name }, i) =>
          `${shape}, ${skew}, ${name}: the busiest rank has ${imbalance(loads[i]!).toFixed(2)} of the mean`,
      ),
      rows: all.map(({ name, expertOf }, i) => {
        const slots = ids.map((group) => slotsOf(group, choices, all[i]!))
        const active = countChoices(slots, expertOf.length).filter((count) => count > 0).length
        return {
          op: 'moe_layer',
          variant: `${skew}, ${name}`,
          shape,
          dtype,
          ranks,
          ...(runtime.virtualRanks && { virtualRanks: true as const }),
          ours: times[i]!,
          ...(i > 0 && { baseline: times[0]! }),
          bytes: (active * 3 * width + 2 * ranks * tokens) * hidden * dtypeBytes(dtype),
          flops: 2 * chosen * 3 * width * hidden,
          memoryPeak: 'read' as const,
          computePeak: dtype,
          checked: ranks * CHECKED_COLUMNS,
          wrong: wrongs[i]!,
        }
      }),
    }
  } finally {
    await runtime.close()
  }
}

export const moeLayerSuite: BenchSuite = {
  name: 'moe-layer',
  summary: 'a layer of routed experts over the ranks, by skew, with and without balancing',
  sizeNames: ['tokens', 'hidden', 'width', 'experts', 'choices'],
  settingNames: ['cpuIsa'],
  defaultSizes: [
    [1, 1024, 512, 64, 8],
    [64, 1024, 512, 64, 8],
    [512, 1024, 512, 64, 8],
  ],
  gpuSizes: [
    [1, 2048, 768, 128, 8],
    [128, 2048, 768, 128, 8],
    [4096, 2048, 768, 128, 8],
  ],
  async run(context) {
    const meter = new OpMeter(context)
    const rows: BenchRow[] = []
    const notes: string[] = []
    for (const size of context.sizes) {
      const [tokens, hidden, width, experts, choices] = size as [
        number,
        number,
        number,
        number,
        number,
      ]
      for (const skew of SKEWS) {
        context.log(`moe-layer ${size.join('×')} ${skew}, ${context.ranks} ranks`)
        const layer = { tokens, hidden, width, experts, choices }
        const measured = await runLayer(context, meter, layer, skew)
        rows.push(...measured.rows)
        notes.push(...measured.notes)
      }
    }
    return { rows, notes: [...notes, meter.note()], details: {} }
  },
}
