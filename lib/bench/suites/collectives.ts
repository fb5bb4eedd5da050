/**
 * Collectives over the ranks: `all-reduce`, and `all-reduce-rms-norm`, the fused sum + residual +
 * norm against all_reduce followed by add_rms_norm on the same buffers. Bytes are those of a
 * two-shot algorithm (each rank reads one row share of every partial and writes its result to all),
 * the least that must move; a one-shot form at few rows moves more.
 */

import { addRmsNorm } from '../../ops/add-rms-norm.ts'
import { allReduce } from '../../ops/all-reduce.ts'
import { allReduceRmsNorm } from '../../ops/all-reduce-rms-norm.ts'
import type { OpDraft } from '../../ops/spec.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { countWrong, decodeFloats, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import {
  countSets,
  matrixBytes,
  OpRuntime,
  placeApart,
  rowLimits,
  rowsStep,
  tryBuild,
  withAttr,
} from '../one-op.ts'
import { type BenchBackend, backendOf } from '../placement.ts'
import type { BenchContext, BenchRow, BenchSuite, Measured } from '../suite.ts'

const EPS = 1e-5

type Kind = 'all_reduce' | 'all_reduce_rms_norm' | 'unfused'

/** A program of the comparison: what it is called in a row, what it runs, in which form. */
interface Side {
  readonly name: string
  readonly kind: Kind
  readonly form?: string
}

/** Forms that stand beside what the op chooses for itself, on a GPU. */
const FORMS = ['one_shot', 'two_shot', 'multicast', 'nccl'] as const

/** The same buffers at the same offsets for every side of a suite. */
function buildProgram(
  context: BenchContext,
  { kind, form }: Side,
  rows: number,
  width: number,
  sets: number,
): Program {
  const { dtype, ranks } = context
  const header = { name: kind, world: ranks, tp: ranks, limits: rowLimits(rows) }
  const builder = new ProgramBuilder(header)
  const inForm = (draft: OpDraft) => (form === undefined ? draft : withAttr(draft, 'form', form))
  const weight = kind === 'all_reduce' ? -1 : builder.weight('weight', 'f32', [width], 'plain')
  for (let set = 0; set < sets; set++) {
    const partial = builder.arena(`partial${set}`, dtype, ['T', width])
    const y = builder.arena(`y${set}`, dtype, ['T', width])
    if (kind === 'all_reduce') {
      builder.add(`all_reduce.${set}`, inForm(allReduce({ x: partial, y })))
      continue
    }
    const residual = builder.arena(`residual${set}`, dtype, ['T', width])
    if (kind === 'all_reduce_rms_norm') {
      const draft = allReduceRmsNorm({ partial, residual, weight, y }, { eps: EPS })
      builder.add(`fused.${set}`, inForm(draft))
      continue
    }
    const sum = builder.arena(`sum${set}`, dtype, ['T', width])
    builder.add(`all_reduce.${set}`, inForm(allReduce({ x: partial, y: sum })))
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

interface Problem {
  readonly rows: number
  readonly width: number
  readonly sets: number
  readonly partials: readonly Uint8Array[]
  readonly expected: Float32Array
}

/** Fills the buffers of one side, runs it once and counts wrong results of its last set. */
async function verifySide(
  runtime: OpRuntime,
  context: BenchContext,
  program: number,
  { kind }: Side,
  { rows, sets, partials, expected }: Problem,
): Promise<number> {
  const zeros = new Uint8Array(partials[0]!.length)
  for (let rank = 0; rank < context.ranks; rank++) {
    for (let set = 0; set < sets; set++) {
      await runtime.write(program, `partial${set}`, rank, partials[rank]!)
      if (kind !== 'all_reduce') await runtime.write(program, `residual${set}`, rank, zeros)
    }
    await runtime.poison(program, `y${sets - 1}`, rank, zeros.length)
  }
  await runtime.run(program, rowsStep(rows))
  let wrong = 0
  for (let rank = 0; rank < context.ranks; rank++) {
    const bytes = await runtime.read(program, `y${sets - 1}`, rank)
    wrong += countWrong(decodeFloats(bytes, context.dtype), expected, context.dtype)
  }
  return wrong
}

/** Sides beside `main` and its baseline: forms of both, on a GPU alone. */
function optionalSides(main: Side, baseline: Side | undefined, backend: BenchBackend): Side[] {
  if (backend === 'cpu') return []
  const forms = FORMS.map((form): Side => ({ ...main, name: form, form }))
  return baseline === undefined
    ? forms
    : [...forms, { ...baseline, name: 'unfused nccl', form: 'nccl' }]
}

interface Timed {
  readonly side: Side
  readonly time: Measured
  readonly wrong: number
}

/** Verifies and times every side that loads; says in `missing` why another does not. */
async function measureSides(
  runtime: OpRuntime,
  context: BenchContext,
  meter: OpMeter,
  sides: readonly Side[],
  problem: Problem,
  missing: Set<string>,
): Promise<Timed[]> {
  const loaded: { side: Side; program: number; wrong: number }[] = []
  for (const [program, side] of sides.entries()) {
    const refusal = runtime.refusal(program)
    if (refusal === undefined) {
      const wrong = await verifySide(runtime, context, program, side, problem)
      loaded.push({ side, program, wrong })
    } else missing.add(`no row for ${side.kind} ${side.name}: ${refusal.message}`)
  }
  const step = rowsStep(problem.rows)
  const times = await meter.measure(
    runtime,
    loaded.map(({ side, program }) => ({ name: side.name, program, step, ops: problem.sets })),
  )
  return loaded.map(({ side, wrong }, index) => ({ side, wrong, time: times[index]! }))
}

/** The unfused sequence where the suite has one, else NCCL. */
function baselineOf(timed: readonly Timed[], baseline: Side | undefined): Timed | undefined {
  return timed.find(({ side }) => side.name === (baseline?.name ?? 'nccl'))
}

async function runCollective(
  context: BenchContext,
  meter: OpMeter,
  main: Side,
  baseline: Side | undefined,
  [rows, width]: readonly [number, number],
  missing: Set<string>,
): Promise<BenchRow[]> {
  const { dtype, ranks } = context
  const fused = main.kind === 'all_reduce_rms_norm'
  const sets = countSets((fused ? 3 : 2) * matrixBytes(rows, width, dtype), context.device)
  const required = baseline === undefined ? [main] : [main, baseline]
  const optional = optionalSides(main, baseline, backendOf(context.device))
  const build = (side: Side) => buildProgram(context, side, rows, width, sets)
  const weight = randomBytes(width, 'f32', 1, 2)
  const contents = new Map([['weight', { dtype: 'f32' as const, bytes: weight }]])
  const runtime = await OpRuntime.open(
    context,
    required.map(build),
    fused ? contents : new Map(),
    optional.map((side) => tryBuild(() => build(side))),
  )
  try {
    const partials = Array.from({ length: ranks }, (_, rank) =>
      randomBytes(rows * width, dtype, halfWidthOf(1), 10 + rank),
    )
    const expected = expectedSum(
      partials.map((partial) => decodeFloats(partial, dtype)),
      fused ? decodeFloats(weight, 'f32') : undefined,
    )
    const problem: Problem = { rows, width, sets, partials, expected }
    const sides = [...required, ...optional]
    const timed = await measureSides(runtime, context, meter, sides, problem, missing)
    const against = baselineOf(timed, baseline)
    const matrix = matrixBytes(rows, width, dtype)
    return timed
      .filter((one) => one !== against)
      .map(({ side, time, wrong }) => ({
        op: side.kind === 'unfused' ? 'all_reduce, add_rms_norm' : side.kind,
        ...(side.form !== undefined && { variant: side.form }),
        shape: `${rows}×${width}`,
        dtype,
        ranks,
        ...(runtime.virtualRanks && { virtualRanks: true }),
        ours: time,
        ...(against !== undefined && { baseline: against.time }),
        bytes: 2 * ranks * matrix + (fused ? 2 * matrix : 0),
        flops: (ranks + (fused ? 5 : 0)) * rows * width,
        memoryPeak: 'copy',
        computePeak: 'f32',
        ...(backendOf(context.device) === 'cuda' && {
          busBytes: (2 * (ranks - 1) * matrix) / ranks,
        }),
        checked: (against === undefined ? 1 : 2) * ranks * expected.length,
        wrong: wrong + (against?.wrong ?? 0),
      }))
  } finally {
    await runtime.close()
  }
}

function collectiveSuite(
  name: string,
  summary: string,
  main: Side,
  baseline: Side | undefined,
): BenchSuite {
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
    gpuSizes: [
      [1, 8192],
      [8, 8192],
      [64, 8192],
      [256, 8192],
      [1024, 8192],
      [4096, 8192],
    ],
    settingNames: ['cpuIsa'],
    async run(context) {
      const meter = new OpMeter(context)
      const rows: BenchRow[] = []
      const missing = new Set<string>()
      for (const size of context.sizes) {
        context.log(`${name} ${size.join('×')}, ${context.ranks} ranks`)
        const [height, width] = size
        const shape = [height!, width!] as const
        rows.push(...(await runCollective(context, meter, main, baseline, shape, missing)))
      }
      return { rows, notes: [...missing, meter.note()], details: {} }
    },
  }
}

export const allReduceSuite = collectiveSuite(
  'all-reduce',
  'sum of [rows, width] over the ranks; on a GPU in every form, against NCCL',
  { name: 'nanoweave', kind: 'all_reduce' },
  undefined,
)

export const allReduceRmsNormSuite = collectiveSuite(
  'all-reduce-rms-norm',
  'fused sum + residual + norm, against all_reduce then add_rms_norm',
  { name: 'nanoweave', kind: 'all_reduce_rms_norm' },
  { name: 'unfused', kind: 'unfused' },
)
