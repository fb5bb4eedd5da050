/**
 * Every overlapped schedule computes what the serial one does, on the CPU with rank threads: staggered
 * parts and every way of sharing lanes, over families, ranks and unequal prompts. The same bits, not
 * only close ones: a row's arithmetic does not depend on the schedule. A bounded set; all of it with
 * NANOWEAVE_ALL_SCHEDULES=1.
 */

import { describe, expect, it } from 'vitest'
import { loadModel } from '../lib/models/index.ts'
import { LANE_MODES } from '../lib/program/passes/lanes.ts'
import { BareModel } from './support/bare-model.ts'
import { DENSE_FAMILIES, goldenFolder, maxDifference, readGolden } from './support/golden.ts'

const ALL = process.env.NANOWEAVE_ALL_SCHEDULES === '1'
const FAMILIES = ALL ? DENSE_FAMILIES : (['llama', 'gemma2-softcap'] as const)
const RANKS = ALL ? [1, 2, 4] : [2]
const STAGGERS = ALL ? [0, 1, 2, 4] : [1, 4]
const PARTS = [2, 3, 4]

for (const family of FAMILIES) {
  describe(family, () => {
    const folder = goldenFolder(family)
    const model = loadModel(folder)
    const [prompt] = readGolden(folder)
    const { tokens, logits } = prompt!

    for (const tp of RANKS) {
      it(`tp ${tp}: every schedule gives the serial program's bits`, async () => {
        const maxTokens = tokens.length
        const serial = await BareModel.load(model, { tp, parts: [1], maxTokens })
        let expected: Float32Array[]
        try {
          expected = await serial.forward(tokens, maxTokens, 1)
        } finally {
          await serial.close()
        }
        expect(maxDifference(expected, logits)).toBeLessThanOrEqual(2e-4)
        for (const lanes of LANE_MODES) {
          for (const stagger of STAGGERS) {
            const bare = await BareModel.load(model, {
              tp,
              parts: PARTS,
              maxTokens,
              lanes,
              stagger,
            })
            try {
              for (const parts of PARTS) {
                const found = await bare.forward(tokens, maxTokens, parts)
                expect(maxDifference(found, expected), `${lanes} ${stagger} ${parts}`).toBe(0)
              }
            } finally {
              await bare.close()
            }
          }
        }
      })
    }
  })
}
