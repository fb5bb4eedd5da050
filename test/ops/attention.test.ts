/**
 * The bits of an attention row depend on its sequence and position alone: not on the other
 * sequences of the step, on how the prompt was cut into chunks or nano-batches, on where its blocks
 * lie, or on the number of threads.
 */

import { describe, expect, test } from 'vitest'
import { STEP_SECTION } from '../../lib/engine/step.ts'
import { encodeStep, OpRuntime, placeApart, usableIsas } from '../support/native.ts'
import { attentionCase } from './attention.cases.ts'
import { BF16, F32, ofHeads, ofLatents, rowInManyWays } from './attention-row.ts'
import { layOut } from './kv-step.ts'
import { expectAgree } from './tolerance.ts'

describe.each(usableIsas())('%s', (cpuIsa) => {
  test.each([
    ['f32', ofHeads({ heads: 6, kvHeads: 2, headDim: 16, ...F32 })],
    ['bf16', ofHeads({ heads: 2, kvHeads: 1, headDim: 20, ...BF16, window: 640, softcap: 20 })],
    ['sinks', ofHeads({ heads: 8, kvHeads: 2, headDim: 16, ...F32, sinks: 2 })],
    ['latent, f32', ofLatents({ heads: 35, latentDim: 24, ropeDim: 6, ...F32 })],
    ['latent, bf16', ofLatents({ heads: 3, latentDim: 32, ropeDim: 8, ...BF16 })],
  ] as const)('a row has the same bits however it is computed (%s)', async (_, caseOf) => {
    const outputs = await rowInManyWays(caseOf, cpuIsa)
    expectAgree(outputs)
    // Not the bytes of nothing.
    expect(outputs[0]!.some((byte) => byte !== 0 && byte !== 0xff)).toBe(true)
  })

  test.each([
    { heads: 4, kvHeads: 2, headDim: 16, dtype: 'f32', kvDtype: 'f32' },
    { heads: 4, kvHeads: 2, headDim: 16, dtype: 'f32', kvDtype: 'f32', window: 20 },
  ] as const)('NaN in a value reaches only the rows that see it', async (model) => {
    const sequences = [{ start: 0, end: 100, padding: [97] }]
    const shape = { name: 'poisoned', ...model, blockSize: 16, sequences }
    const { builder, inputs, step } = attentionCase(shape, false).make()
    const runtime = await OpRuntime.open(placeApart(builder), { cpuIsa, threadsPerRank: 2 })
    const words = encodeStep(new Map([[STEP_SECTION.partBounds, [0, 100]], ...step]))
    const outputs: Float32Array[] = []
    const poisoned = 70
    for (const value of [undefined, Number.NaN, Infinity]) {
      const kv = Float64Array.from(inputs.kv![0]!)
      const slot = layOut(sequences, 16).slotOf(0, poisoned)
      for (let head = 0; value !== undefined && head < model.kvHeads; head++) {
        const row = (2 * Math.floor(slot / 16) + 1) * model.kvHeads + head
        const at = (row * 16 + (slot % 16)) * model.headDim
        kv.fill(value, at, at + model.headDim)
      }
      await runtime.write('q', 0, inputs.q![0]!)
      await runtime.write('kv', 0, kv)
      await runtime.submit(words)
      outputs.push(new Float32Array((await runtime.readBytes('o', 0)).slice().buffer))
    }
    await runtime.close()
    const width = model.heads * model.headDim
    const sees = (row: number) =>
      row >= poisoned && row !== 97 && row < poisoned + ('window' in model ? model.window : 100)
    for (const output of outputs.slice(1)) {
      for (let row = 0; row < 100; row++) {
        const values = output.subarray(row * width, (row + 1) * width)
        if (sees(row)) expect(values.some(Number.isFinite), `row ${row}`).toBe(false)
        else
          expect(values, `row ${row}`).toEqual(outputs[0]!.subarray(row * width, (row + 1) * width))
      }
    }
  })
})
