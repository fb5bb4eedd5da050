/**
 * Logits and greedy continuations of every dense family against the reference (transformers,
 * float32), over tensor-parallel degrees, nano-batches and prefill chunks. No engine in between.
 */

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { checkLayout, loadModel } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { ON_CPU } from './support/device.ts'
import { DENSE_FAMILIES, goldenFolder, maxDifference, readGolden } from './support/golden.ts'

const MAX_LOGIT_DIFFERENCE = 2e-4
const MIN_MARGIN = 1e-3
const PARTS = [1, 2, 4]
/** Captured graphs are a GPU's alone. */
const GRAPHS = ON_CPU ? [true] : [true, false]

for (const family of DENSE_FAMILIES) {
  const folder = goldenFolder(family)
  const model = loadModel(folder)
  const prompts = readGolden(folder)
  const longest = Math.max(...prompts.map(({ tokens, greedy }) => tokens.length + greedy.length))
  const degrees = [1, 2, 4, 8].filter((tp) => {
    try {
      checkLayout(model, tp)
      return true
    } catch {
      return false
    }
  })

  it(`${family}: splits over 1, 2 and 4 ranks`, () => {
    expect(degrees).toEqual(expect.arrayContaining([1, 2, 4]))
  })

  for (const [tp, graphs] of degrees.flatMap((tp) =>
    GRAPHS.map((graphs) => [tp, graphs] as const),
  )) {
    describe(`${family}, tp ${tp}${graphs ? '' : ', no graphs'}`, () => {
      let bare: BareModel
      beforeAll(async () => {
        bare = await BareModel.load(model, { tp, parts: PARTS, maxTokens: longest, graphs })
      })
      afterAll(() => bare?.close())

      for (const parts of PARTS) {
        for (const chunk of [longest, 5]) {
          const name = chunk === longest ? 'whole' : `in chunks of ${chunk}`
          it(`${parts} parts, prompt ${name}: logits`, async () => {
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
              // Where two tokens are as good as equal, follow the reference.
              next = (await bare.step([token], position++, parts)).sampled
            }
          }
        })
      }
    })
  }
}
