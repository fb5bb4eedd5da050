/**
 * Odd shapes over several ranks: a random checkpoint must give the same logits on one rank and on
 * many, whatever is padded, copied or split. One rank is compared with the reference by
 * test/goldens.test.ts.
 */

import { describe, expect, it } from 'vitest'
import { checkLayout, loadModel } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { createFolder, withHeader } from './support/checkpoint-folder.ts'
import { maxDifference } from './support/golden.ts'
import { createRandom } from './support/random.ts'

interface OddModel {
  readonly config?: Readonly<Record<string, unknown>>
  readonly degrees: readonly number[]
  readonly dtype?: 'F32' | 'BF16'
  readonly biases?: boolean
}

const BASE = {
  architectures: ['LlamaForCausalLM'],
  vocab_size: 101,
  hidden_size: 48,
  intermediate_size: 53,
  num_hidden_layers: 2,
  num_attention_heads: 6,
  num_key_value_heads: 6,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
}

/** A Llama checkpoint of random numbers: norms near 1, the rest small. */
function randomCheckpoint({ config = {}, dtype = 'F32', biases = false }: OddModel): {
  config: string
  weights: Buffer
} {
  const all = { ...BASE, ...config, ...(biases && { attention_bias: true, mlp_bias: true }) }
  const [hidden, inner] = [all.hidden_size, all.intermediate_size]
  const queries = hidden
  const keys = (hidden / all.num_attention_heads) * all.num_key_value_heads
  const shapes: [string, number[]][] = [
    ['model.embed_tokens.weight', [all.vocab_size, hidden]],
    ['lm_head.weight', [all.vocab_size, hidden]],
    ['model.norm.weight', [hidden]],
  ]
  for (let layer = 0; layer < all.num_hidden_layers; layer++) {
    const base = `model.layers.${layer}.`
    for (const [name, out, inputs] of [
      ['self_attn.q_proj', queries, hidden],
      ['self_attn.k_proj', keys, hidden],
      ['self_attn.v_proj', keys, hidden],
      ['self_attn.o_proj', hidden, queries],
      ['mlp.gate_proj', inner, hidden],
      ['mlp.up_proj', inner, hidden],
      ['mlp.down_proj', hidden, inner],
    ] as const) {
      shapes.push([`${base}${name}.weight`, [out, inputs]])
      if (biases) shapes.push([`${base}${name}.bias`, [out]])
    }
    for (const norm of ['input_layernorm', 'post_attention_layernorm']) {
      shapes.push([`${base}${norm}.weight`, [hidden]])
    }
  }
  const random = createRandom(3)
  const header: Record<string, unknown> = {}
  const chunks: Buffer[] = []
  let offset = 0
  for (const [name, shape] of shapes) {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () =>
      name.includes('norm') ? 1 + 0.2 * (random.next() - 0.5) : random.next() - 0.5,
    )
    const floats = Buffer.from(values.buffer)
    // Upper halves of the float32 words: bf16, rounded towards zero.
    const bytes =
      dtype === 'F32' ? floats : Buffer.from(floats.filter((_, index) => index % 4 >= 2))
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] }
    offset += bytes.length
    chunks.push(bytes)
  }
  const file = withHeader(JSON.stringify(header))
  return { config: JSON.stringify(all), weights: Buffer.concat([file, ...chunks]) }
}

const CASES: Record<string, OddModel> = {
  'width, vocabulary and heads that powers of two do not divide': { degrees: [2, 3, 6] },
  'one KV head for all': { config: { num_key_value_heads: 1 }, degrees: [2, 3, 6] },
  'two KV heads, copied': { config: { num_key_value_heads: 2 }, degrees: [2, 6] },
  'biases everywhere': { biases: true, degrees: [2, 3] },
  'bf16 weights': { dtype: 'BF16', degrees: [2, 3] },
  'a width smaller than the padding': { config: { intermediate_size: 5 }, degrees: [6] },
  'a vocabulary smaller than the padding': { config: { vocab_size: 17 }, degrees: [6] },
}

describe('ranks agree', () => {
  for (const [name, odd] of Object.entries(CASES)) {
    it(name, async () => {
      const { config, weights } = randomCheckpoint(odd)
      using folder = createFolder({ 'config.json': config, 'model.safetensors': weights })
      const model = loadModel(folder.path)
      const random = createRandom(5)
      const tokens = Array.from({ length: 50 }, () => random.int(0, model.vocabSize - 1))
      const logitsOf = async (tp: number) => {
        checkLayout(model, tp)
        const bare = await BareModel.load(model, { tp, parts: [1, 3], maxTokens: 50 })
        try {
          return [await bare.forward(tokens, 50, 1), await bare.forward(tokens, 7, 3)] as const
        } finally {
          await bare.close()
        }
      }
      const [alone] = await logitsOf(1)
      // The comparison would be empty if logits did not depend on their token.
      expect(maxDifference([alone[1]!], [alone[2]!])).toBeGreaterThan(0.1)
      for (const tp of odd.degrees) {
        for (const logits of await logitsOf(tp)) {
          expect(maxDifference(logits, alone)).toBeLessThanOrEqual(2e-4)
        }
      }
    })
  }
})
