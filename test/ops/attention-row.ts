/**
 * One row of attention computed in many ways: decode, the end of a chunk, its middle, in parts, among
 * others, on one thread and several. Its bits have to be the same.
 */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { encodeStep, OpRuntime, placeApart, splitIntoParts } from '../support/native.ts'
import { type AttentionCase, attentionCase } from './attention.cases.ts'
import type { SequenceRows } from './kv-step.ts'
import { type LatentAttentionCase, latentAttentionCase } from './mla.cases.ts'
import type { OpCase } from './op-case.ts'

interface Run {
  readonly sequences: readonly SequenceRows[]
  readonly seeds: readonly number[]
  readonly threads: number
  readonly parts?: readonly number[]
  readonly blockSize?: number
}

export type CaseOf = (run: Run) => OpCase

export function ofHeads(model: Omit<AttentionCase, 'name' | 'sequences'>): CaseOf {
  return (run) => attentionCase({ name: 'row', ...model, ...run }, false)
}

export function ofLatents(model: Omit<LatentAttentionCase, 'name' | 'sequences'>): CaseOf {
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
export const F32 = { dtype: 'f32', kvDtype: 'f32' } as const
export const BF16 = { dtype: 'bf16', kvDtype: 'bf16' } as const
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

/** Alone, in parts of a chunk, among others: what emulated devices have time for. */
export const FEW_RUNS: readonly Run[] = [RUNS[0]!, RUNS[4]!, RUNS[5]!]

/** Its bytes, a time for each way. */
export async function rowInManyWays(
  caseOf: CaseOf,
  cpuIsa: string,
  runs = RUNS,
): Promise<Uint8Array[]> {
  const outputs: Uint8Array[] = []
  for (const run of runs) outputs.push(await rowBytes(caseOf, run, cpuIsa, SEED, LAST))
  return outputs
}
