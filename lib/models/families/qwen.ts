/**
 * Qwen 2, 2.5 (biases on q, k, v) and Qwen 3 (norms over each query and key head). With
 * `use_sliding_window`, layers from `max_window_layers` on have the window.
 */

import type { JsonObject } from '../../weights/json.ts'
import { flag, integer, requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import {
  conventionalDecoder,
  type Dimensions,
  type Family,
  type FamilyModel,
  isTied,
  type LayerChoices,
  readDimensions,
  readLayerTypes,
  readWindow,
  windowsOf,
} from './common.ts'

export const qwen2: Family = {
  architectures: ['Qwen2ForCausalLM'],
  describe(config) {
    const dimensions = readDimensions(config, { eps: 1e-6, maxPositions: 32_768 })
    return describeQwen(config, dimensions, { queryKeyValueBias: true })
  },
}

export const qwen3: Family = {
  architectures: ['Qwen3ForCausalLM'],
  describe(config) {
    const dimensions = readDimensions(config, { eps: 1e-6, maxPositions: 32_768, headDim: 128 })
    const bias = flag(config, 'attention_bias', false)
    return describeQwen(config, dimensions, {
      queryKeyValueBias: bias,
      outputBias: bias,
      queryKeyNorm: true,
    })
  },
}

function describeQwen(
  config: JsonObject,
  dimensions: Dimensions,
  choices: Omit<LayerChoices, 'rope'>,
): FamilyModel {
  requireActivation(config, 'hidden_act', ['silu'])
  const window = flag(config, 'use_sliding_window', false) ? readWindow(config, 4096) : undefined
  const firstWindowed = integer(config, 'max_window_layers', { min: 0, max: 2 ** 20 }, 28)
  const types = readLayerTypes(config, dimensions.numLayers, (layer) =>
    window !== undefined && layer >= firstWindowed ? 'sliding_attention' : 'full_attention',
  )
  const windows = windowsOf(types, window)
  const spec = conventionalDecoder(dimensions, {
    ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000 })],
    layerChoices: (layer) => ({ rope: 0, window: windows[layer], ...choices }),
    tied: isTied(config, false),
  })
  return { spec, maxPositions: dimensions.maxPositions }
}
