/**
 * The dense families with weights, activations and KV cache in bfloat16 and in float16, against the
 * reference in float32: the golden class of 16 bits (ops/tolerance.ts).
 */

import { describe, it } from 'vitest'
import { checkLayout, loadModel } from '../lib/models/index.ts'
import { expectHalfGolden } from './ops/tolerance.ts'
import { BareModel } from './support/bare-model.ts'
import { DENSE_FAMILIES, goldenFolder, readGolden } from './support/golden.ts'
import { halfCheckpoint } from './support/half-checkpoint.ts'

const PARTS = [1, 2]

describe.each(DENSE_FAMILIES)('%s', (family) => {
  const folder = goldenFolder(family)
  const prompts = readGolden(folder).slice(0, 2)
  const longest = Math.max(...prompts.map(({ tokens }) => tokens.length))

  it.each([
    ['bf16', 1],
    ['bf16', 4],
    ['f16', 1],
    ['f16', 2],
  ] as const)('%s, tp %d', async (dtype, tp) => {
    using half = halfCheckpoint(folder, dtype)
    const model = loadModel(half.path)
    checkLayout(model, tp)
    const bare = await BareModel.load(model, {
      tp,
      parts: PARTS,
      maxTokens: longest,
      precision: 'auto',
    })
    try {
      for (const { tokens, logits } of prompts)
        for (const parts of PARTS) {
          expectHalfGolden(await bare.forward(tokens, longest, parts), logits, dtype)
          // Token by token at the end: the kernels of decoding.
          const split = Math.max(1, tokens.length - 4)
          const decoded = (await bare.step(tokens.slice(0, split), 0, parts)).logits
          for (let at = split; at < tokens.length; at++)
            decoded.push(...(await bare.step([tokens[at]!], at, parts)).logits)
          expectHalfGolden(decoded, logits, dtype)
        }
    } finally {
      await bare.close()
    }
  })
})
