/**
 * What a row sums and normalises to has the same bits on every rank, in both forms, in any nano-batch
 * and at any number of threads; and a rank that never comes back is noticed.
 */

import { describe, expect, test } from 'vitest'
import { STEP_SECTION } from '../../lib/engine/step.ts'
import { allReduce } from '../../lib/ops/all-reduce.ts'
import { allReduceRmsNorm } from '../../lib/ops/all-reduce-rms-norm.ts'
import type { CollectiveForm } from '../../lib/ops/collective-form.ts'
import { stall } from '../../lib/ops/stall.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { encodeStep, OpRuntime, placeApart, splitIntoParts, usableIsas } from '../support/native.ts'
import { builderFor, randomValues, rowsStep } from './op-case.ts'
import { expectAgree, expectExact } from './tolerance.ts'

/** A row of bf16 that CUDA takes: 16 bytes. */
const SHORT_ROW = 8

const ROWS = 45
const COLS = 104

interface Run {
  readonly form: CollectiveForm
  readonly bounds: readonly number[]
  readonly threads: number
}

const RUNS: readonly Run[] = [
  { form: 'auto', bounds: [0, ROWS], threads: 1 },
  { form: 'one_shot', bounds: [0, ROWS], threads: 2 },
  { form: 'two_shot', bounds: [0, ROWS], threads: 3 },
  { form: 'auto', bounds: [0, 3, 40, ROWS], threads: 1 },
  { form: 'two_shot', bounds: [0, 1, 1, ROWS], threads: 2 },
]

/** Random floats: sums round, so another order of ranks would show. */
function partialOf(rank: number, dtype: Dtype): Float64Array {
  return randomValues(rank + 1, ROWS * COLS, dtype, 3)
}

async function fusedOutputs(run: Run, world: number, dtype: Dtype, cpuIsa: string) {
  const builder = builderFor(ROWS, world)
  const partial = builder.arena('partial', dtype, ['T', COLS])
  const residual = builder.arena('residual', dtype, ['T', COLS])
  const weight = builder.weight('weight', 'f32', [COLS], 'plain')
  const y = builder.arena('y', dtype, ['T', COLS])
  const { form } = run
  builder.add('op', allReduceRmsNorm({ partial, residual, weight, y }, { eps: 1e-5, form }))
  const program = splitIntoParts(placeApart(builder), run.bounds.length - 1)
  const weights = { weight: [randomValues(90, COLS)] }
  const runtime = await OpRuntime.open(program, { weights, cpuIsa, threadsPerRank: run.threads })
  try {
    for (let rank = 0; rank < world; rank++) {
      await runtime.write('partial', rank, partialOf(rank, dtype))
      await runtime.write('residual', rank, randomValues(91, ROWS * COLS, dtype))
    }
    await runtime.submit(
      encodeStep(new Map([[STEP_SECTION.partBounds, run.bounds], ...rowsStep(ROWS)])),
    )
    const outputs: Uint8Array[] = []
    for (let rank = 0; rank < world; rank++) outputs.push(await runtime.readBytes('y', rank))
    const bytes = (outputs[0]!.length / program.limits.maxTokens) * ROWS
    return outputs.map((output) => output.subarray(0, bytes))
  } finally {
    await runtime.close()
  }
}

describe.each(usableIsas())('%s', (cpuIsa) => {
  test.each([
    [2, 'bf16'],
    [4, 'f32'],
  ] as const)('all_reduce_rms_norm of %i ranks agrees in every form (%s)', async (world, dtype) => {
    const outputs: Uint8Array[] = []
    for (const run of RUNS) outputs.push(...(await fusedOutputs(run, world, dtype, cpuIsa)))
    expectAgree(outputs)
  })

  test('all_reduce adds in rank order, in float32, and rounds once', async () => {
    const world = 4
    const builder = builderFor(1, world)
    const x = builder.arena('x', 'bf16', ['T', SHORT_ROW])
    const y = builder.arena('y', 'bf16', ['T', SHORT_ROW])
    const row = (value: number) => Array<number>(SHORT_ROW).fill(value)
    builder.add('op', allReduce({ x, y }))
    const runtime = await OpRuntime.open(placeApart(builder), { cpuIsa })
    try {
      // 1 + 2^-9 twice: rounded after each addition the small terms would be lost.
      const partials = [1, 2 ** -9, 2 ** -9, 2 ** -30]
      for (let rank = 0; rank < world; rank++) await runtime.write('x', rank, row(partials[rank]!))
      await runtime.submit(encodeStep(new Map([[STEP_SECTION.partBounds, [0, 1]], ...rowsStep(1)])))
      for (let rank = 0; rank < world; rank++) {
        // 1 + 2^-8 in float32, half way between bf16 neighbours: ties to even, which is 1.
        expectExact((await runtime.read('y', rank)).subarray(0, SHORT_ROW), row(1))
      }
      // In another order of ranks 2^24 + 1 + 1 would be 2^24 + 2.
      const order = [2 ** 24, 1, 1, -(2 ** 24)]
      for (let rank = 0; rank < world; rank++) await runtime.write('x', rank, row(order[rank]!))
      await runtime.submit(encodeStep(new Map([[STEP_SECTION.partBounds, [0, 1]], ...rowsStep(1)])))
      expectExact((await runtime.read('y', 3)).subarray(0, SHORT_ROW), row(0))
    } finally {
      await runtime.close()
    }
  })
})

test('a dead rank is an error that names it, not a hang', async () => {
  const builder = builderFor(4, 2)
  const x = builder.arena('x', 'f32', ['T', 8])
  const y = builder.arena('y', 'f32', ['T', 8])
  builder.add('dead', stall({ x }, { rank: 1, ms: -1 }))
  builder.add('op', allReduce({ x, y }))
  const runtime = await OpRuntime.open(placeApart(builder), { waitTimeoutMs: 200 })
  try {
    const step = encodeStep(new Map([[STEP_SECTION.partBounds, [0, 4]], ...rowsStep(4)]))
    await expect(runtime.submit(step)).rejects.toMatchObject({ code: 'ERR_RANK_TIMEOUT', rank: 1 })
  } finally {
    await runtime.close()
  }
})
