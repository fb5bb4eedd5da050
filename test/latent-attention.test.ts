/**
 * Latent attention in the engine: its cache is copied, shared and swapped like keys and values, its
 * checkpoints come in fp8 too, and scores are scaled as DeepSeek's long contexts need.
 */

import { describe, expect, it } from 'vitest'
import { Engine } from '../lib/engine/engine.ts'
import { derivedSeed } from '../lib/engine/sampling.ts'
import type { EngineOptions } from '../lib/engine/types.ts'
import { loadModel, type Model, modelFootprint, modelFromConfig } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { createFolder } from './support/checkpoint-folder.ts'
import { fp8Copies, withFp8 } from './support/fp8.ts'
import { goldenFolder } from './support/golden.ts'
import { configOf } from './support/golden-config.ts'
import { readTensors, writeTensors } from './support/tensors.ts'

const FAMILY = 'deepseek-v3-mla'
const FOLDER = goldenFolder(FAMILY)
/** Three layers of 16 + 8 floats a token, blocks of 16 tokens. */
const BLOCK_BYTES = 3 * 24 * 4 * 16
const VOCAB = 320

const tokensOf = (length: number, seed: number) =>
  Array.from({ length }, (_, i) => (seed * 37 + i * 11) % VOCAB)

describe('the cache of latent vectors', () => {
  it('is on every rank, and is what a token takes', () => {
    const model = loadModel(FOLDER)
    for (const tensorParallel of [1, 2, 4, 8]) {
      const { kvBytesPerBlock } = modelFootprint(model, { tensorParallel, precision: 'f32' })
      expect(kvBytesPerBlock(16)).toBe(BLOCK_BYTES)
    }
  })

  const requests = Array.from({ length: 8 }, (_, i) => ({
    tokens: tokensOf(18 + i, i),
    maxTokens: 40,
    ignoreEos: true,
    temperature: 0.8,
    seed: i,
  }))
  const run = async (options: EngineOptions) => {
    await using engine = await Engine.load(FOLDER, { device: 'cpu', precision: 'f32', ...options })
    const results = await Promise.all(requests.map((request) => engine.complete(request)))
    return { tokens: results.map((result) => result.tokens), stats: engine.stats() }
  }

  it.each([1, 2])('swapped to the host and back gives the same tokens, tp %i', async (tp) => {
    const calm = await run({ tensorParallel: tp })
    const pressed = await run({
      tensorParallel: tp,
      kvCacheBytes: 12 * BLOCK_BYTES * tp,
      hostKvBytes: 40 * BLOCK_BYTES * tp,
      maxNumSeqs: 8,
      admission: 'prompt-fits',
      preemption: 'swap',
    })
    expect(pressed.stats.kvBlocks.total).toBe(12)
    expect(pressed.stats.swapsIn).toBeGreaterThan(2)
    expect(calm.stats.preemptions).toBe(0)
    expect(pressed.tokens).toEqual(calm.tokens)
  })

  it('shared by outputs of one prompt gives what each gives alone', async () => {
    await using engine = await Engine.load(FOLDER, { device: 'cpu', precision: 'f32' })
    const request = { tokens: tokensOf(37, 3), maxTokens: 24, temperature: 1, ignoreEos: true }
    const { choices } = await engine.completeMany({ ...request, n: 3, seed: 5 })
    for (const [index, choice] of choices.entries()) {
      const seed = derivedSeed(5n, index)
      expect(choice.tokens).toEqual((await engine.complete({ ...request, seed })).tokens)
    }
  })
})

describe('checkpoints', () => {
  const prompt = tokensOf(33, 1)
  const logitsOf = async (folder: string, tp: number) => {
    const bare = await BareModel.load(loadModel(folder), { tp, ep: 1, parts: [1], maxTokens: 48 })
    try {
      return await bare.forward(prompt, prompt.length, 1)
    } finally {
      await bare.close()
    }
  }

  it.each([1, 4])('in fp8 mean what their bytes and factors say, tp %i', async (tp) => {
    // Keys' matrices are taken transposed, across blocks of factors.
    const copies = fp8Copies(`${FOLDER}/model.safetensors`, /self_attn\..*proj.*\.weight$/)
    const config = configOf(FAMILY)
    using fp8 = createFolder({
      'config.json': JSON.stringify(withFp8(config)),
      'model.safetensors': copies.fp8,
    })
    using meant = createFolder({
      'config.json': JSON.stringify(config),
      'model.safetensors': copies.meant,
    })
    expect(await logitsOf(fp8.path, tp)).toEqual(await logitsOf(meant.path, tp))
  })

  it('with layers that predict further tokens give the same logits', async () => {
    const tensors = readTensors(`${FOLDER}/model.safetensors`)
    for (const [name, tensor] of [...tensors]) {
      if (name.includes('layers.2.')) tensors.set(name.replace('layers.2.', 'layers.3.'), tensor)
    }
    using folder = createFolder({
      'config.json': JSON.stringify(configOf(FAMILY)),
      'model.safetensors': writeTensors(tensors),
    })
    expect(await logitsOf(folder.path, 1)).toEqual(await logitsOf(FOLDER, 1))
  })
})

describe('sizes as published', () => {
  const scaleOf = (model: Model) => {
    const { attention } = model.spec.layers[0]!
    return attention.kind === 'latent' ? attention.scale : Number.NaN
  }
  const published = {
    ...configOf(FAMILY),
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    head_dim: null,
  }
  const yarn = {
    type: 'yarn',
    factor: 40,
    original_max_position_embeddings: 4096,
    beta_fast: 32,
    beta_slow: 1,
    mscale: 1.0,
    mscale_all_dim: 1.0,
  }

  it('scores are scaled by the square of the attention factor', () => {
    const plain = modelFromConfig('plain', published, 'bf16')
    expect(scaleOf(plain)).toBeCloseTo(192 ** -0.5, 12)
    const config = { ...published, rope_scaling: yarn, max_position_embeddings: 163_840 }
    const long = modelFromConfig('long', config, 'bf16')
    // 192^-0.5 · (0.1 · ln 40 + 1)², config.json and inference/model.py of DeepSeek-V3.
    expect(scaleOf(long)).toBeCloseTo(0.13523377886, 9)
    // Both scales are equal: cosines and sines stay as they are.
    expect(long.spec.ropes[0]).toMatchObject({ rotaryDim: 64, scaling: { attentionFactor: 1 } })
  })

  it('queries without a latent vector of their own, experts without groups (V2-Lite)', () => {
    const config = {
      ...configOf('deepseek-v2-mla'),
      q_lora_rank: null,
      topk_method: 'greedy',
      n_group: 1,
      topk_group: 1,
    }
    const { spec } = modelFromConfig('lite', config, 'bf16')
    expect(spec.layers[0]!.attention).toMatchObject({
      kind: 'latent',
      query: { tensor: 'model.layers.0.self_attn.q_proj.weight' },
    })
    expect(spec.layers[0]!.attention).not.toHaveProperty('queryDown')
    expect(spec.layers[1]!.feedForward).toMatchObject({ routing: { score: 'softmax', scale: 1.5 } })
    expect(spec.layers[1]!.feedForward).not.toHaveProperty('routing.groups')
  })
})
