/**
 * Overlapped matmuls give the bits of the serial ops they stand for: matmul → all_reduce_rms_norm →
 * matmul, layer after layer, for any number of groups, form, nano-batches and threads, with a late rank
 * or none; and a rank that never comes is noticed, by name.
 */

import { describe, expect, test } from 'vitest'
import { STEP_SECTION } from '../../lib/engine/step.ts'
import { addRmsNorm } from '../../lib/ops/add-rms-norm.ts'
import { allGatherMatmul } from '../../lib/ops/all-gather-matmul.ts'
import { allGatherRows } from '../../lib/ops/all-gather-rows.ts'
import { allReduceRmsNorm } from '../../lib/ops/all-reduce-rms-norm.ts'
import type { CollectiveForm } from '../../lib/ops/collective-form.ts'
import { matmul } from '../../lib/ops/matmul.ts'
import { matmulAllReduce } from '../../lib/ops/matmul-all-reduce.ts'
import { matmulReduceScatter } from '../../lib/ops/matmul-reduce-scatter.ts'
import { stall } from '../../lib/ops/stall.ts'
import type { ProgramBuilder } from '../../lib/program/builder.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { ON_CPU } from '../support/device.ts'
import { encodeStep, OpRuntime, placeApart, splitIntoParts, usableIsas } from '../support/native.ts'
import { builderFor, randomValues, rowsStep } from './op-case.ts'
import { expectAgree } from './tolerance.ts'

const ROWS = 45
const COLS = 72
const LAYERS = 3
const LATE_MS = 10
const EPS = 1e-5

interface Run {
  readonly kind: 'serial' | 'all_reduce' | 'reduce_scatter'
  readonly groups?: number
  readonly form?: CollectiveForm
  readonly bounds?: readonly number[]
  readonly threads?: number
  readonly late?: number
}

const RUNS: readonly Run[] = [
  { kind: 'serial' },
  { kind: 'all_reduce', groups: 1, threads: 2 },
  { kind: 'all_reduce', groups: 4, form: 'two_shot' },
  { kind: 'all_reduce', groups: 3, form: 'one_shot', late: 0 },
  { kind: 'all_reduce', groups: 2, bounds: [0, 3, 3, 40, ROWS], late: 1 },
  { kind: 'reduce_scatter', groups: 1, late: 0 },
  { kind: 'reduce_scatter', groups: 4, threads: 3, late: 1 },
  { kind: 'reduce_scatter', groups: 8, bounds: [0, 1, 1, ROWS] },
]

/** The buffers of a layer: x → product → norm → the next x. */
function addBuffers(builder: ProgramBuilder, dtype: Dtype) {
  const rows = (name: string, of: Dtype = dtype) => builder.arena(name, of, ['T', COLS])
  return {
    x: rows('x'),
    partial: rows('partial'),
    sum: rows('sum', 'f32'),
    residual: rows('residual'),
    normed: rows('normed'),
    out: builder.weight('out', dtype, [COLS, COLS], 'matmul'),
    into: builder.weight('into', dtype, [COLS, COLS], 'matmul'),
    weight: builder.weight('weight', 'f32', [COLS], 'plain'),
  }
}

type Buffers = ReturnType<typeof addBuffers>

function addLayer(builder: ProgramBuilder, run: Run, buffers: Buffers, layer: number): void {
  const { x, partial, sum, residual, normed: y, out, into, weight } = buffers
  const { groups = 1, form } = run
  if (run.kind === 'serial') {
    builder.add(`out${layer}`, matmul({ x, weight: out, y: partial }))
    const norm = allReduceRmsNorm({ partial, residual, weight, y }, { eps: EPS, form })
    builder.add(`norm${layer}`, norm)
    builder.add(`into${layer}`, matmul({ x: y, weight: into, y: x }))
    return
  }
  const scattered = run.kind === 'reduce_scatter'
  const multiply = scattered ? matmulReduceScatter : matmulAllReduce
  builder.add(`out${layer}`, multiply({ x, weight: out, partial, y: sum }, { groups, form }))
  const attrs = { eps: EPS, owned_groups: scattered ? groups : undefined }
  builder.add(`norm${layer}`, addRmsNorm({ x: sum, residual, weight, y }, attrs))
  builder.add(
    `into${layer}`,
    scattered
      ? allGatherMatmul({ x: y, weight: into, y: x }, { groups })
      : matmul({ x: y, weight: into, y: x }),
  )
}

async function outputsOf(run: Run, world: number, dtype: Dtype, cpuIsa: string) {
  const builder = builderFor(ROWS, world)
  const buffers = addBuffers(builder, dtype)
  for (let layer = 0; layer < LAYERS; layer++) {
    if (run.late !== undefined) {
      const late = stall({ x: buffers.x }, { rank: run.late, ms: LATE_MS })
      builder.add(`late${layer}`, late)
    }
    addLayer(builder, run, buffers, layer)
  }
  const bounds = run.bounds ?? [0, ROWS]
  const program = splitIntoParts(placeApart(builder), bounds.length - 1)
  const perRank = (seed: number) =>
    Array.from({ length: world }, (_, rank) => randomValues(seed + rank, COLS * COLS, dtype, 0.3))
  const weights = { out: perRank(10), into: perRank(20), weight: [randomValues(90, COLS)] }
  const runtime = await OpRuntime.open(program, {
    weights,
    cpuIsa,
    threadsPerRank: run.threads ?? 1,
    // A GPU has other kernels for few rows.
    deterministic: !ON_CPU,
  })
  try {
    await runtime.poison()
    for (let rank = 0; rank < world; rank++) {
      await runtime.write('x', rank, randomValues(rank + 1, ROWS * COLS, dtype))
      await runtime.write('residual', rank, randomValues(91, ROWS * COLS, dtype))
    }
    await runtime.submit(
      encodeStep(new Map([[STEP_SECTION.partBounds, bounds], ...rowsStep(ROWS)])),
    )
    const outputs: Uint8Array[] = []
    for (let rank = 0; rank < world; rank++) {
      const output = await runtime.readBytes('x', rank)
      outputs.push(output.subarray(0, (output.length / program.limits.maxTokens) * ROWS))
    }
    return outputs
  } finally {
    await runtime.close()
  }
}

describe.each(usableIsas())('%s', (cpuIsa) => {
  test.each([
    [2, 'bf16'],
    [3, 'f16'],
    [4, 'f32'],
  ] as const)('%i ranks: every way has the serial bits (%s)', async (world, dtype) => {
    const runs = await Promise.all(RUNS.map((run) => outputsOf(run, world, dtype, cpuIsa)))
    // Each rank has columns of its own in the last matmul.
    for (let rank = 0; rank < world; rank++) expectAgree(runs.map((outputs) => outputs[rank]!))
  })
})

describe('a rank that never comes', () => {
  const ROWS_OF_OP = 6
  const OPS = {
    matmul_all_reduce: ({ x, out, partial, sum }: Buffers) =>
      matmulAllReduce({ x, weight: out, partial, y: sum }, { groups: 2 }),
    matmul_reduce_scatter: ({ x, out, partial, sum }: Buffers) =>
      matmulReduceScatter({ x, weight: out, partial, y: sum }, { groups: 2 }),
    all_gather_matmul: ({ x, into, normed }: Buffers) =>
      allGatherMatmul({ x, weight: into, y: normed }, { groups: 2 }),
    all_gather_rows: ({ x }: Buffers) => allGatherRows({ x }, { groups: 2 }),
  }

  test.each(Object.keys(OPS) as (keyof typeof OPS)[])('%s names it', async (kind) => {
    const builder = builderFor(ROWS_OF_OP, 2)
    const buffers = addBuffers(builder, 'f32')
    builder.add('dead', stall({ x: buffers.x }, { rank: 1, ms: -1 }))
    builder.add('op', OPS[kind](buffers))
    const runtime = await OpRuntime.open(placeApart(builder), { waitTimeoutMs: 200 })
    try {
      const bounds = [STEP_SECTION.partBounds, [0, ROWS_OF_OP]] as const
      const step = encodeStep(new Map([bounds, ...rowsStep(ROWS_OF_OP)]))
      const failure = { code: 'ERR_RANK_TIMEOUT', rank: 1, op: 'op' }
      await expect(runtime.submit(step)).rejects.toMatchObject(failure)
    } finally {
      await runtime.close()
    }
  })
})
