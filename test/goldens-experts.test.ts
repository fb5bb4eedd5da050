/**
 * Logits and greedy continuations of the families with routed experts against the reference
 * (transformers, float32), over every layout of up to four ranks, nano-batches and prefill chunks; and that spreading
 * experts over ranks changes no bit.
 */

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadModel } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { EXPERT_FAMILIES, goldenFolder, maxDifference, readGolden } from './support/golden.ts'

const MAX_LOGIT_DIFFERENCE = 2e-4
const MIN_MARGIN = 1e-3
const PARTS = [1, 2]

const LAYOUTS = [1, 2, 4].flatMap((tp) => [1, 2, 4].map((ep) => [tp, ep] as const))

for (const family of EXPERT_FAMILIES) {
  const folder = goldenFolder(family)
  const model = loadModel(folder)
  const prompts = readGolden(folder)
  const longest = Math.max(...prompts.map(({ tokens, greedy }) => tokens.length + greedy.length))

  for (const [tp, ep] of LAYOUTS) {
    describe(`${family}, tp ${tp}, ep ${ep}`, () => {
      let bare: BareModel
      beforeAll(async () => {
        bare = await BareModel.load(model, { tp, ep, parts: PARTS, maxTokens: longest })
        // The last group: the others take part with no tokens.
        bare.group = Math.max(tp, ep) / tp - 1
      })
      afterAll(() => bare?.close())

      for (const parts of PARTS) {
        for (const chunk of [longest, 5]) {
          it(`${parts} parts: logits, ${chunk} tokens a step`, async () => {
            for (const prompt of prompts) {
              const logits = await bare.forward(prompt.tokens, chunk, parts)
              expect(maxDifference(logits, prompt.logits)).toBeLessThanOrEqual(MAX_LOGIT_DIFFERENCE)
            }
          })
        }

        it(`${parts} parts: greedy continuation`, async () => {
          for (const { tokens, greedy } of prompts) {
            let next = (await bare.step(tokens, 0, parts)).sampled
            let position = tokens.length
            for (const { token, margin } of greedy) {
              if (margin > MIN_MARGIN) expect(next).toBe(token)
              next = (await bare.step([token], position++, parts)).sampled
            }
          }
        })
      }
    })
  }

  it(`${family}: experts over 1, 2 and 4 ranks give the same bits`, async () => {
    const runs: Float32Array[][] = []
    for (const ep of [1, 2, 4]) {
      const bare = await BareModel.load(model, { tp: 1, ep, parts: PARTS, maxTokens: longest })
      try {
        runs.push(await bare.forward(prompts.at(-1)!.tokens, longest, 2))
      } finally {
        await bare.close()
      }
    }
    expect(runs[1]).toEqual(runs[0])
    expect(runs[2]).toEqual(runs[0])
  })
}
