/**
 * Every overlapped schedule computes what the serial one does, on the CPU with rank threads: staggered
 * parts and every way of sharing lanes, sums inside matmuls, over families, ranks and unequal prompts.
 * The same bits, not only close ones: a row's arithmetic does not depend on the schedule, nor on a rank
 * that comes late. A bounded set; all of it with NANOWEAVE_ALL_SCHEDULES=1.
 */

import { describe, expect, it } from 'vitest'
import { checkLayout, loadModel, type Model } from '../lib/models/index.ts'
import { LANE_MODES } from '../lib/program/passes/lanes.ts'
import type { Program } from '../lib/program/types.ts'
import { BareModel, type BareOptions } from './support/bare-model.ts'
import {
  DENSE_FAMILIES,
  EXPERT_FAMILIES,
  goldenFolder,
  maxDifference,
  readGolden,
} from './support/golden.ts'
import { withLateRank } from './support/late-rank.ts'

const ALL = process.env.NANOWEAVE_ALL_SCHEDULES === '1'
const FAMILIES = ALL ? DENSE_FAMILIES : (['llama', 'gemma2-softcap'] as const)
const RANKS = ALL ? [1, 2, 4] : [2]
const STAGGERS = ALL ? [0, 1, 2, 4] : [1, 4]
const PARTS = [2, 3, 4]
const GROUPS = ALL ? [1, 2, 3, 8] : [3]
const OVERLAPS = (['all_reduce', 'reduce_scatter'] as const).flatMap((form) =>
  GROUPS.map((groups) => ({ form, groups })),
)

/** Logits of a prompt, once for each number of parts. */
async function logitsOf(
  model: Model,
  tokens: readonly number[],
  options: Omit<BareOptions, 'maxTokens'>,
): Promise<Float32Array[][]> {
  const bare = await BareModel.load(model, { ...options, maxTokens: tokens.length })
  try {
    const found: Float32Array[][] = []
    for (const parts of options.parts) found.push(await bare.forward(tokens, tokens.length, parts))
    return found
  } finally {
    await bare.close()
  }
}

for (const family of FAMILIES) {
  describe(family, () => {
    const folder = goldenFolder(family)
    const model = loadModel(folder)
    const [prompt] = readGolden(folder)
    const { tokens, logits } = prompt!

    for (const tp of RANKS) {
      it(`tp ${tp}: every schedule gives the serial program's bits`, async () => {
        const [expected] = await logitsOf(model, tokens, { tp, parts: [1] })
        expect(maxDifference(expected!, logits)).toBeLessThanOrEqual(2e-4)
        for (const lanes of LANE_MODES) {
          for (const stagger of STAGGERS) {
            const found = await logitsOf(model, tokens, { tp, parts: PARTS, lanes, stagger })
            found.forEach((one, index) => {
              const name = `${lanes} ${stagger} ${PARTS[index]}`
              expect(maxDifference(one, expected!), name).toBe(0)
            })
          }
        }
      })
    }
  })
}

describe('sums inside matmuls', () => {
  for (const family of [...DENSE_FAMILIES, ...EXPERT_FAMILIES]) {
    const folder = goldenFolder(family)
    const model = loadModel(folder)
    const { tokens, logits } = readGolden(folder)[0]!

    for (const tp of [2, 4].filter((ranks) => fits(model, ranks))) {
      it(`${family}, tp ${tp}: the serial program's bits`, async () => {
        const [expected] = await logitsOf(model, tokens, { tp, parts: [1] })
        expect(maxDifference(expected!, logits)).toBeLessThanOrEqual(2e-4)
        for (const overlap of OVERLAPS) {
          const found = await logitsOf(model, tokens, { tp, parts: [1, 2], overlap })
          for (const one of found) expect(maxDifference(one, expected!), overlap.form).toBe(0)
        }
      })
    }
  }

  it.each(OVERLAPS)('bf16 has the serial bits too: $form', async (overlap) => {
    const folder = goldenFolder('llama3-rope-tied-bf16')
    const { tokens } = readGolden(folder)[0]!
    const options = { tp: 2, precision: 'bf16', parts: [1, 2] } as const
    const [expected] = await logitsOf(loadModel(folder), tokens, options)
    const found = await logitsOf(loadModel(folder), tokens, { ...options, overlap })
    for (const one of found) expect(maxDifference(one, expected!)).toBe(0)
  })

  it.each(OVERLAPS)(
    'a late rank changes nothing but time: $form, $groups groups',
    async (overlap) => {
      const model = loadModel(goldenFolder('llama'))
      const { tokens } = readGolden(goldenFolder('llama'))[0]!
      const options = { tp: 2, parts: [1], overlap }
      const [expected] = await logitsOf(model, tokens, options)
      for (const [rank, label] of [
        [0, 'layers.0.o'],
        [1, 'layers.0.gate_up'],
        [1, 'layers.1.down'],
      ] as const) {
        const change = (program: Program) => withLateRank(program, label, rank, 30)
        const [found] = await logitsOf(model, tokens, { ...options, change })
        expect(maxDifference(found!, expected!), `${label} of rank ${rank}`).toBe(0)
      }
    },
  )
})

function fits(model: Model, tp: number): boolean {
  try {
    checkLayout(model, tp, 1)
    return true
  } catch {
    return false
  }
}
