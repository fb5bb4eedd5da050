/** Mistral: Llama with a sliding window on every layer, where the config has one. */

import type { JsonObject } from '../../weights/json.ts'
import { requireActivation, unsupported } from '../config.ts'
import { readRope } from '../rope-config.ts'
import {
  conventionalDecoder,
  type Family,
  isTied,
  readDimensions,
  readLayerTypes,
  readWindow,
} from './common.ts'

export const mistral: Family = {
  architectures: ['MistralForCausalLM'],
  describe(config: JsonObject) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-6, maxPositions: 131_072, kvHeads: 8 })
    const window = readWindow(config, 4096)
    const type = window === undefined ? 'full_attention' : 'sliding_attention'
    const types = readLayerTypes(config, dimensions.numLayers, () => type)
    if (types.some((other) => other !== type)) {
      throw unsupported('Mistral has one kind of layer; layer_types asks for another')
    }
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000 })],
      layerChoices: () => ({ rope: 0, window }),
      tied: isTied(config, false),
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}
