/**
 * The bits of an attention row depend on its sequence and position alone: not on the other
 * sequences of the step, on how the prompt was cut into chunks or nano-batches, on where its blocks
 * lie, or on the number of threads.
 */

import { describe, expect, test } from 'vitest'
import { STEP_SECTION } from '../../lib/engine/step.ts'
import { encodeStep, OpRuntime, placeApart, splitIntoParts, usableIsas } from '../support/native.ts'
import { type AttentionCase, attentionCase } from './attention.cases.ts'
import { layOut, type SequenceRows } from './kv-step.ts'
import { type LatentAttentionCase, latentAttentionCase } from './mla.cases.ts'
import type { OpCase } from './op-case.ts'
import { expectAgree } from './tolerance.ts'

interface Run {
  readonly sequences: readonly SequenceRows[]
  readonly seeds: readonly number[]
  readonly threads: number
  readonly parts?: readonly number[]
  readonly blockSize?: number
}

type CaseOf = (run: Run) => OpCase

function ofHeads(model: Omit<AttentionCase, 'name' | 'sequences'>): CaseOf {
  return (run) => attentionCase({ name: 'row', ...model, ...run }, false)
}

function ofLatents(model: Omit<LatentAttentionCase, 'name' | 'sequences'>): CaseOf {
  return (run) => latentAttentionCase({ name: 'row', ...model, ...run }, false)
}

/** Bytes of the output row of one position of the first sequence with `seed`. */
async function rowBytes(
  caseOf: CaseOf,
  run: Run,
  cpuIsa: string,
  seed: number,
  position: number,
): Promise<Uint8Array> {
  const { builder, inputs, weights, step } = caseOf(run).make()
  const tokens = step.get(STEP_SECTION.tokens)!.length
  const bounds = run.parts ?? [0, tokens]
  const program = splitIntoParts(placeApart(builder), bounds.length - 1)
  const runtime = await OpRuntime.open(program, {
    cpuIsa,
    threadsPerRank: run.threads,
    ...(weights && { weights }),
  })
  try {
    await runtime.poison()
    for (const [name, [values]] of Object.entries(inputs)) await runtime.write(name, 0, values!)
    await runtime.submit(encodeStep(new Map([[STEP_SECTION.partBounds, bounds], ...step])))
    const output = await runtime.readBytes('o', 0)
    const sequence = run.seeds.indexOf(seed)
    const before = run.sequences.slice(0, sequence)
    const first = before.reduce((sum, { start, end }) => sum + end - start, 0)
    const row = first + position - run.sequences[sequence]!.start
    const width = output.length / program.limits.maxTokens
    return output.slice(row * width, (row + 1) * width)
  } finally {
    await runtime.close()
  }
}

/** Crosses two split boundaries (512 keys), ends inside a tile of 64 and a block of 16. */
const LAST = 1100
const SEED = 9
const F32 = { dtype: 'f32', kvDtype: 'f32' } as const
const BF16 = { dtype: 'bf16', kvDtype: 'bf16' } as const
const OTHERS: readonly SequenceRows[] = [
  { start: 0, end: 30 },
  { start: 299, end: 300 },
]

const RUNS: readonly Run[] = [
  // Decode, alone, one thread and several.
  { sequences: [{ start: LAST, end: LAST + 1 }], seeds: [SEED], threads: 1 },
  { sequences: [{ start: LAST, end: LAST + 1 }], seeds: [SEED], threads: 4 },
  // The end of a chunk of the prompt, cut in two places.
  { sequences: [{ start: LAST - 40, end: LAST + 1 }], seeds: [SEED], threads: 2 },
  { sequences: [{ start: LAST - 101, end: LAST + 1 }], seeds: [SEED], threads: 3, blockSize: 32 },
  // In the middle of a chunk, in parts that cut the sequence.
  {
    sequences: [{ start: LAST - 20, end: LAST + 9 }],
    seeds: [SEED],
    threads: 2,
    parts: [0, 7, 20, 20, 29],
  },
  // Among others.
  {
    sequences: [OTHERS[0]!, { start: LAST - 3, end: LAST + 1 }, OTHERS[1]!],
    seeds: [1, SEED, 2],
    threads: 4,
    parts: [0, 33, 35],
  },
]

describe.each(usableIsas())('%s', (cpuIsa) => {
  test.each([
    ['f32', ofHeads({ heads: 6, kvHeads: 2, headDim: 16, ...F32 })],
    ['bf16', ofHeads({ heads: 2, kvHeads: 1, headDim: 20, ...BF16, window: 640, softcap: 20 })],
    ['sinks', ofHeads({ heads: 8, kvHeads: 2, headDim: 16, ...F32, sinks: 2 })],
    ['latent, f32', ofLatents({ heads: 35, latentDim: 24, ropeDim: 6, ...F32 })],
    ['latent, bf16', ofLatents({ heads: 3, latentDim: 32, ropeDim: 8, ...BF16 })],
  ] as const)('a row has the same bits however it is computed (%s)', async (_, caseOf) => {
    const outputs: Uint8Array[] = []
    for (const run of RUNS) outputs.push(await rowBytes(caseOf, run, cpuIsa, SEED, LAST))
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
