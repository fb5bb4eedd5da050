/**
 * Gemma 2 and 3 (text): norms before and after each block with 1 + weight, scaled embeddings,
 * tanh-gelu, alternating windows. Gemma 2 caps scores and logits; Gemma 3 normalises queries
 * and keys and rotates local and global layers with different frequencies. The text model of a
 * multimodal Gemma 3 folder runs; its vision tower is left alone.
 */

import type { JsonObject } from '../../weights/json.ts'
import type { TensorIndex } from '../../weights/safetensors.ts'
import {
  configError,
  flag,
  integer,
  number,
  optionalNumber,
  optionalObject,
  requireActivation,
  unsupported,
} from '../config.ts'
import { readRope, ropeFromSettings } from '../rope-config.ts'
import type { RopeSpec } from '../spec.ts'
import {
  conventionalDecoder,
  type Dimensions,
  type Family,
  type FamilyModel,
  findPrefix,
  isTied,
  type LayerChoices,
  readDimensions,
  readLayerTypes,
  readWindow,
  SOFTCAP,
  windowsOf,
} from './common.ts'

/** Choices that every layer of Gemma 2 and 3 shares. */
function gemmaLayer(config: JsonObject): Omit<LayerChoices, 'rope'> {
  requireActivation(config, 'hidden_activation', ['gelu_pytorch_tanh'])
  const bias = flag(config, 'attention_bias', false)
  const scalar = number(config, 'query_pre_attn_scalar', { min: 1e-6, max: 1e6 }, 256)
  return {
    scale: scalar ** -0.5,
    queryKeyValueBias: bias,
    outputBias: bias,
    activation: 'gelu_tanh',
    normOffset: 1,
    sandwichNorms: true,
  }
}

const GEMMA_SIZES: Partial<Dimensions> = {
  hiddenSize: 2304,
  intermediateSize: 9216,
  numLayers: 26,
  heads: 8,
  kvHeads: 4,
  headDim: 256,
  eps: 1e-6,
}

export const gemma2: Family = {
  architectures: ['Gemma2ForCausalLM'],
  describe(config: JsonObject) {
    const sizes = { ...GEMMA_SIZES, vocabSize: 256_000, maxPositions: 8192 }
    const dimensions = readDimensions(config, sizes)
    const types = readLayerTypes(config, dimensions.numLayers, (layer) =>
      layer % 2 === 0 ? 'sliding_attention' : 'full_attention',
    )
    const windows = windowsOf(types, readWindow(config, 4096))
    const shared = gemmaLayer(config)
    const softcap = readSoftcap(config, 'attn_logit_softcapping', 50)
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000 })],
      layerChoices: (layer) => ({ ...shared, rope: 0, softcap, window: windows[layer] }),
      tied: isTied(config, true),
      embeddingScale: Math.sqrt(dimensions.hiddenSize),
      logitSoftcap: readSoftcap(config, 'final_logit_softcapping', 30),
      normOffset: 1,
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}

export const gemma3: Family = {
  architectures: ['Gemma3ForCausalLM', 'Gemma3ForConditionalGeneration'],
  describe(config: JsonObject, tensors: TensorIndex) {
    const text = optionalObject(config, 'text_config')
    if (text === undefined) return describeGemma3(config, tensors, isTied(config, true))
    return describeGemma3(text, tensors, isTied(config, isTied(text, true)))
  },
}

function describeGemma3(config: JsonObject, tensors: TensorIndex, tied: boolean): FamilyModel {
  const sizes = { ...GEMMA_SIZES, vocabSize: 262_208, maxPositions: 131_072 }
  const dimensions = readDimensions(config, sizes)
  if (optionalNumber(config, 'attn_logit_softcapping', SOFTCAP) !== undefined) {
    throw unsupported('attn_logit_softcapping is not part of Gemma 3')
  }
  const every = { min: 1, max: 2 ** 20 }
  const pattern = integer(config, 'sliding_window_pattern', every, 6)
  const types = readLayerTypes(config, dimensions.numLayers, (layer) =>
    (layer + 1) % pattern === 0 ? 'full_attention' : 'sliding_attention',
  )
  const windows = windowsOf(types, readWindow(config, 4096))
  const shared = gemmaLayer(config)
  const prefix = findPrefix(tensors, ['model.', 'language_model.model.', 'model.language_model.'])
  const spec = conventionalDecoder(dimensions, {
    ropes: readGemma3Ropes(config, dimensions),
    layerChoices: (layer) => ({
      ...shared,
      rope: types[layer] === 'full_attention' ? 0 : 1,
      queryKeyNorm: true,
      window: windows[layer],
    }),
    tied,
    prefix,
    head: prefix === 'language_model.model.' ? 'language_model.lm_head.weight' : 'lm_head.weight',
    embeddingScale: Math.sqrt(dimensions.hiddenSize),
    logitSoftcap: readSoftcap(config, 'final_logit_softcapping', undefined),
    normOffset: 1,
  })
  return { spec, maxPositions: dimensions.maxPositions }
}

/** [global, local]. A `rope_scaling` beside them is the global one's. */
function readGemma3Ropes(config: JsonObject, dimensions: Dimensions): RopeSpec[] {
  const parameters = optionalObject(config, 'rope_parameters') ?? {}
  for (const key of Object.keys(parameters)) {
    if (key !== 'full_attention' && key !== 'sliding_attention') {
      throw configError('rope_parameters of Gemma 3 has full_attention and sliding_attention only')
    }
  }
  const full = {
    ...optionalObject(parameters, 'full_attention'),
    ...optionalObject(config, 'rope_scaling'),
  }
  const local = optionalObject(parameters, 'sliding_attention') ?? {}
  const { rope_local_base_freq: localTheta = null } = config
  return [
    ropeFromSettings(config, full, { ...dimensions, defaultTheta: 1_000_000 }),
    ropeFromSettings({ ...config, rope_theta: localTheta }, local, {
      ...dimensions,
      defaultTheta: 10_000,
    }),
  ]
}

/** `null` switches a cap off; a config that does not mention it gets the architecture's. */
function readSoftcap(
  config: JsonObject,
  key: string,
  fallback: number | undefined,
): number | undefined {
  return Object.hasOwn(config, key) ? optionalNumber(config, key, SOFTCAP) : fallback
}
