/**
 * A tensor-parallel layer without its attention, serially and under every schedule that overlaps: o,
 * sum and norm, gate and up, activation, down, sum and norm, qkv, whose result the next layer's o
 * takes. Beside the time of a layer stands what communication costs it: ECT, its time less that of its
 * matmuls and activation alone, and E, the share of the serial layer's ECT that the schedule hides.
 */

import { EngineError } from '../../errors.ts'
import { addRmsNorm } from '../../ops/add-rms-norm.ts'
import { allReduce } from '../../ops/all-reduce.ts'
import { matmul } from '../../ops/matmul.ts'
import { siluMul } from '../../ops/silu-mul.ts'
import { IN_TURN } from '../../planner/hardware.ts'
import { applySchedule, partBounds, type Schedule, SERIAL } from '../../planner/schedule.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import { ARENA_ALIGNMENT } from '../../program/memory.ts'
import { maxBytes } from '../../program/shapes.ts'
import type { Program } from '../../program/types.ts'
import { validateProgram } from '../../program/validate.ts'
import {
  countWrong,
  decodeFloats,
  dtypeBytes,
  floatReader,
  halfWidthOf,
  randomBytes,
  roundTo,
} from '../elements.ts'
import { OpMeter } from '../measure.ts'
import {
  matrixBytes,
  OpRuntime,
  rowLimits,
  rowsStep,
  tryBuild,
  type WeightContents,
} from '../one-op.ts'
import { backendOf } from '../placement.ts'
import { deriveRow } from '../report.ts'
import type { BenchContext, BenchRow, BenchSuite, Measured } from '../suite.ts'

const EPS = 1e-5
/** So that a layer's last matmul overlaps with the next one's first. */
const LAYERS = 2
const ROW_GROUPS = 4
/** Outputs of one token, on each rank, that are compared with float64. */
const CHECKED_COLUMNS = 16

interface Layer {
  readonly tokens: number
  readonly hidden: number
  readonly width: number
}

interface Side {
  readonly name: string
  readonly schedule: Schedule
}

const SERIAL_SIDE: Side = { name: 'serial', schedule: SERIAL }

const OVERLAPPED: readonly Side[] = [
  { name: '2 nano-batches', schedule: { ...SERIAL, parts: 2, splits: [0.5, 1] } },
  {
    name: 'matmul_all_reduce',
    schedule: { ...SERIAL, overlap: { form: 'all_reduce', groups: ROW_GROUPS } },
  },
  {
    name: 'matmul_reduce_scatter, all_gather_matmul',
    schedule: { ...SERIAL, overlap: { form: 'reduce_scatter', groups: ROW_GROUPS } },
  },
]

/** What T_gemm counts: the rest of a layer is sums and the norms that follow them. */
const MATMUL_KINDS: ReadonlySet<string> = new Set(['matmul', 'silu_mul'])

/** The layers as a model is built: serial, sums and norms apart. */
function buildLayers({ ranks, dtype }: BenchContext, { tokens, hidden, width }: Layer): Program {
  const builder = new ProgramBuilder({
    name: 'tensor_parallel_layer',
    world: ranks,
    tp: ranks,
    limits: rowLimits(tokens),
  })
  const [heads, local] = [hidden / ranks, width / ranks]
  const x = builder.arena('x', dtype, ['T', heads])
  const residual = builder.arena('residual', dtype, ['T', hidden])
  const normWeight = builder.weight('norm', 'f32', [hidden], 'plain')
  const norm = (label: string, partial: number, sum: number, y: number) => {
    builder.add(`${label}.sum`, allReduce({ x: partial, y: sum }))
    const operands = { x: sum, residual, weight: normWeight, y }
    builder.add(`${label}.norm`, addRmsNorm(operands, { eps: EPS }))
  }
  let input = x
  for (let layer = 0; layer < LAYERS; layer++) {
    const arena = (name: string, cols: number) =>
      builder.arena(`${name}${layer}`, dtype, ['T', cols])
    const multiply = (name: string, from: number, cols: number, depth: number) => {
      const y = arena(name, cols)
      const weight = builder.weight(`${name}_w${layer}`, dtype, [cols, depth], 'matmul')
      builder.add(`${name}.${layer}`, matmul({ x: from, weight, y }))
      return y
    }
    const attended = arena('attended', hidden)
    const o = multiply('o', input, hidden, heads)
    norm(`o.${layer}`, o, arena('o_sum', hidden), attended)
    const gateUp = multiply('gate_up', attended, 2 * local, hidden)
    const act = arena('act', local)
    builder.add(`act.${layer}`, siluMul({ gateUp, y: act }))
    const fed = arena('fed', hidden)
    const down = multiply('down', act, hidden, local)
    norm(`down.${layer}`, down, arena('down_sum', hidden), fed)
    input = multiply('qkv', fed, heads, hidden)
  }
  return builder.build()
}

/** A buffer is at the same bytes in every program, so that each finds what another left there. */
function placeAlike(serial: Program): (program: Program) => Program {
  const offsets = new Map<string, number>()
  let end = 0
  for (const buffer of serial.buffers) {
    if (buffer.space !== 'arena') continue
    offsets.set(buffer.name, end)
    // A schedule may keep sums in float32.
    const bytes = maxBytes({ ...buffer, dtype: 'f32' }, serial.limits)
    end += Math.ceil(bytes / ARENA_ALIGNMENT) * ARENA_ALIGNMENT
  }
  return (program) => {
    const buffers = program.buffers.map((buffer) =>
      buffer.space === 'arena' ? { ...buffer, offset: offsets.get(buffer.name)! } : buffer,
    )
    const placed: Program = { ...program, buffers, arenaBytes: end }
    validateProgram(placed)
    return placed
  }
}

function matmulsAlone(program: Program): Program {
  return { ...program, ops: program.ops.filter(({ kind }) => MATMUL_KINDS.has(kind)) }
}

type FloatReader = (index: number) => number

/** What the ranks compute with; weights are the same on all of them. */
interface Operands {
  readonly contents: WeightContents
  /** By rank. */
  readonly x: readonly Uint8Array[]
  readonly residual: Uint8Array
}

function makeOperands({ dtype, ranks }: BenchContext, layer: Layer): Operands {
  const { tokens, hidden, width } = layer
  const [heads, local] = [hidden / ranks, width / ranks]
  const random = (rows: number, depth: number, seed: number) => ({
    dtype,
    bytes: randomBytes(rows * depth, dtype, halfWidthOf(1 / Math.sqrt(depth)), seed),
  })
  const weights = {
    o_w: random(hidden, heads, 2),
    gate_up_w: random(2 * local, hidden, 3),
    down_w: random(hidden, local, 4),
    qkv_w: random(heads, hidden, 5),
  }
  const contents: WeightContents = new Map([
    ['norm', { dtype: 'f32' as const, bytes: randomBytes(hidden, 'f32', 1, 6) }],
    ...Object.entries(weights).flatMap(([name, weight]) =>
      Array.from({ length: LAYERS }, (_, index) => [`${name}${index}`, weight] as const),
    ),
  ])
  return {
    contents,
    x: Array.from({ length: ranks }, (_, rank) =>
      randomBytes(tokens * heads, dtype, halfWidthOf(1), 10 + rank),
    ),
    residual: randomBytes(tokens * hidden, dtype, halfWidthOf(1), 7),
  }
}

/** The first columns of a token's qkv after the last layer, alike on all ranks, in float64, rounded where buffers are. */
function expectedOutputs(
  { dtype, ranks }: BenchContext,
  { hidden, width }: Layer,
  operands: Operands,
  token: number,
): Float64Array {
  const [heads, local] = [hidden / ranks, width / ranks]
  const weight = (name: string) => floatReader(operands.contents.get(`${name}0`)!.bytes, dtype)
  const [o, gateUp, down, qkv] = ['o_w', 'gate_up_w', 'down_w', 'qkv_w'].map(weight)
  const norm = decodeFloats(operands.contents.get('norm')!.bytes, 'f32')
  const round = (values: Float64Array) => values.map((value) => roundTo(value, dtype))
  const multiply = (matrix: FloatReader, x: Float64Array, rows: number) => {
    const y = new Float64Array(rows)
    for (let row = 0; row < rows; row++) {
      for (let k = 0; k < x.length; k++) y[row]! += x[k]! * matrix(row * x.length + k)
    }
    return round(y)
  }
  const readRow = (bytes: Uint8Array, cols: number) => {
    const value = floatReader(bytes, dtype)
    return Float64Array.from({ length: cols }, (_, col) => value(token * cols + col))
  }
  let residual: Float64Array = readRow(operands.residual, hidden)
  const addAndNormalise = (partials: readonly Float64Array[]) => {
    residual = residual.map((value, i) => partials.reduce((sum, one) => sum + one[i]!, value))
    const squares = residual.reduce((sum, value) => sum + value ** 2, 0)
    const scale = 1 / Math.sqrt(squares / hidden + EPS)
    const y = round(residual.map((value, i) => value * scale * norm[i]!))
    residual = round(residual)
    return y
  }
  const onAll = (partial: Float64Array) => Array.from({ length: ranks }, () => partial)
  let inputs: Float64Array[] = operands.x.map((x) => readRow(x, heads))
  for (let layer = 0; layer < LAYERS; layer++) {
    // Ranks have the same weights: after the first layer they compute the same.
    const partials =
      layer === 0
        ? inputs.map((x) => multiply(o!, x, hidden))
        : onAll(multiply(o!, inputs[0]!, hidden))
    const both = multiply(gateUp!, addAndNormalise(partials), 2 * local)
    const act = both.subarray(0, local).map((gate, i) => {
      return (gate / (1 + Math.exp(-gate))) * both[local + i]!
    })
    const fed = addAndNormalise(onAll(multiply(down!, round(act), hidden)))
    inputs = onAll(multiply(qkv!, fed, heads))
  }
  return inputs[0]!.subarray(0, CHECKED_COLUMNS)
}

const RESULT = `qkv${LAYERS - 1}`

/** The result of every rank, from fresh operands. */
async function runOnce(
  runtime: OpRuntime,
  context: BenchContext,
  layer: Layer,
  operands: Operands,
  program: number,
  step: Int32Array,
): Promise<Uint8Array[]> {
  for (let rank = 0; rank < context.ranks; rank++) {
    await runtime.write(program, 'x', rank, operands.x[rank]!)
    await runtime.write(program, 'residual', rank, operands.residual)
    const bytes = matrixBytes(layer.tokens, layer.hidden / context.ranks, context.dtype)
    await runtime.poison(program, RESULT, rank, bytes)
  }
  await runtime.run(program, step)
  const results: Uint8Array[] = []
  for (let rank = 0; rank < context.ranks; rank++) {
    results.push(await runtime.read(program, RESULT, rank))
  }
  return results
}

interface Check {
  readonly checked: number
  readonly wrong: number
}

/** The serial program against float64. */
function checkSerial(
  context: BenchContext,
  layer: Layer,
  operands: Operands,
  results: readonly Uint8Array[],
): Check {
  const heads = layer.hidden / context.ranks
  const token = Math.floor(layer.tokens / 2)
  const expected = expectedOutputs(context, layer, operands, token)
  let [checked, wrong] = [0, 0]
  for (const bytes of results) {
    const value = floatReader(bytes, context.dtype)
    const actual = Float64Array.from(expected, (_, col) => value(token * heads + col))
    checked += expected.length
    wrong += countWrong(actual, expected, context.dtype)
  }
  return { checked, wrong }
}

/**
 * An overlapped program against the serial one: the same bits. On a GPU the number of rows decides
 * which kernel multiplies, and kernels add up in orders of their own: there within rounding.
 */
function checkOverlapped(
  { device, dtype }: BenchContext,
  results: readonly Uint8Array[],
  serial: readonly Uint8Array[],
): Check {
  let [checked, wrong] = [0, 0]
  results.forEach((bytes, rank) => {
    const expected = serial[rank]!
    checked += expected.length / dtypeBytes(dtype)
    wrong +=
      backendOf(device) === 'cpu'
        ? countOtherBits(bytes, expected, dtypeBytes(dtype))
        : countWrong(decodeFloats(bytes, dtype), decodeFloats(expected, dtype), dtype)
  })
  return { checked, wrong }
}

/** Elements of `size` bytes that are not the same. */
function countOtherBits(actual: Uint8Array, expected: Uint8Array, size: number): number {
  let count = 0
  for (let at = 0; at < expected.length; at += size) {
    const one = actual.subarray(at, at + size)
    if (Buffer.compare(one, expected.subarray(at, at + size)) !== 0) count++
  }
  return count
}

function checkLayer({ ranks }: BenchContext, { hidden, width }: Layer): void {
  if (ranks < 2) {
    throw new EngineError('ERR_USAGE', 'bench overlap sums over ranks: give --ranks 2 or more')
  }
  if (hidden % ranks !== 0 || width % ranks !== 0) {
    throw new EngineError(
      'ERR_USAGE',
      `${ranks} ranks cannot share a layer of ${hidden}×${width} equally; choose other --sizes`,
    )
  }
}

interface Timed extends Side, Check {
  readonly time: Measured
}

/** Verifies and times every schedule that loads, the serial one first; says why another does not. */
async function measureSides(
  runtime: OpRuntime,
  context: BenchContext,
  meter: OpMeter,
  layer: Layer,
  operands: Operands,
  missing: Set<string>,
): Promise<{ timed: Timed[]; gemm: Measured }> {
  // Programs: the serial one, the matmuls alone, the overlapped ones.
  const sides = [
    { ...SERIAL_SIDE, program: 0 },
    ...OVERLAPPED.map((side, index) => ({ ...side, program: index + 2 })),
  ].filter(({ name, program }) => {
    const refusal = runtime.refusal(program)
    if (refusal !== undefined) missing.add(`no row for ${name}: ${refusal.message}`)
    return refusal === undefined
  })
  const { tokens } = layer
  const stepOf = ({ schedule }: Side) => rowsStep(tokens, 1, partBounds(schedule, tokens))
  const checks: Check[] = []
  let serial: Uint8Array[] = []
  for (const side of sides) {
    const { program } = side
    const results = await runOnce(runtime, context, layer, operands, program, stepOf(side))
    if (program === 0) serial = results
    checks.push(
      program === 0
        ? checkSerial(context, layer, operands, results)
        : checkOverlapped(context, results, serial),
    )
  }
  const [gemm, ...times] = await meter.measure(runtime, [
    { name: 'matmuls alone', program: 1, step: rowsStep(tokens), ops: LAYERS },
    ...sides.map((side) => ({
      name: side.name,
      program: side.program,
      step: stepOf(side),
      ops: LAYERS,
    })),
  ])
  return {
    gemm: gemm!,
    timed: sides.map((side, i) => ({ ...side, ...checks[i]!, time: times[i]! })),
  }
}

async function runLayer(
  context: BenchContext,
  meter: OpMeter,
  layer: Layer,
  missing: Set<string>,
): Promise<BenchRow[]> {
  checkLayer(context, layer)
  const { dtype, ranks } = context
  const { tokens, hidden, width } = layer
  const layers = buildLayers(context, layer)
  const place = placeAlike(layers)
  const build = ({ schedule }: Side) => place(applySchedule(layers, schedule))
  const operands = makeOperands(context, layer)
  const runtime = await OpRuntime.open(
    context,
    [build(SERIAL_SIDE), place(applySchedule(matmulsAlone(layers), SERIAL))],
    operands.contents,
    OVERLAPPED.map((side) => tryBuild(() => build(side))),
  )
  try {
    const { timed, gemm } = await measureSides(runtime, context, meter, layer, operands, missing)
    const weights = (2 * hidden + 3 * width) * hidden
    return timed.map(({ name, time, checked, wrong }, index) => ({
      op: 'tensor_parallel_layer',
      variant: name,
      shape: [tokens, hidden, width].join('×'),
      dtype,
      ranks,
      ...(runtime.virtualRanks && { virtualRanks: true as const }),
      ours: time,
      ...(index > 0 && { baseline: timed[0]!.time }),
      gemm,
      bytes: (weights + 2 * tokens * hidden) * dtypeBytes(dtype),
      flops: 2 * tokens * weights,
      memoryPeak: 'read' as const,
      computePeak: dtype,
      checked,
      wrong,
    }))
  } finally {
    await runtime.close()
  }
}

function backendNote(context: BenchContext): string {
  return backendOf(context.device) === 'cpu'
    ? `no schedule can hide communication on the CPU: a rank ${IN_TURN}; what a schedule wins or loses here is how its ops are cut. Results have the serial program's bits`
    : 'results of the schedules agree with the serial program within rounding: the number of rows decides which kernel multiplies'
}

export const overlapSuite: BenchSuite = {
  name: 'overlap',
  summary: 'a tensor-parallel layer under every overlapped schedule, against the serial one',
  sizeNames: ['tokens', 'hidden', 'width'],
  settingNames: ['cpuIsa'],
  defaultSizes: [
    [64, 1024, 2816],
    [512, 1024, 2816],
  ],
  gpuSizes: [
    [256, 8192, 28672],
    [1024, 8192, 28672],
    [4096, 8192, 28672],
  ],
  async run(context) {
    const meter = new OpMeter(context)
    const rows: BenchRow[] = []
    const missing = new Set<string>()
    for (const size of context.sizes) {
      const [tokens, hidden, width] = size as [number, number, number]
      context.log(`overlap ${size.join('×')}, ${context.ranks} ranks`)
      rows.push(...(await runLayer(context, meter, { tokens, hidden, width }, missing)))
    }
    const notes = [
      'T_gemm: the matmuls and the activation alone; ECT = time − T_gemm: sums, norms and waiting; E = 1 − ECT / ECT of the serial layer',
      backendNote(context),
    ]
    const schedules = rows.map((row) => {
      const { effectiveCommunicationUs, overlapEfficiency } = deriveRow(row, undefined)
      const { variant: schedule, shape } = row
      return { schedule, shape, effectiveCommunicationUs, overlapEfficiency }
    })
    return { rows, notes: [...missing, ...notes, meter.note()], details: { schedules } }
  },
}
