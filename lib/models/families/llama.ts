/** Llama 2 and 3: grouped-query attention, silu-gated feed-forward, every kind of rope scaling. */

import type { JsonObject } from '../../weights/json.ts'
import { flag, requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import { conventionalDecoder, type Family, isTied, readDimensions } from './common.ts'

export const llama: Family = {
  architectures: ['LlamaForCausalLM'],
  describe(config: JsonObject) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-6, maxPositions: 2048 })
    const attentionBias = flag(config, 'attention_bias', false)
    const layer = {
      rope: 0,
      queryKeyValueBias: attentionBias,
      outputBias: attentionBias,
      feedForwardBias: flag(config, 'mlp_bias', false),
    }
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000 })],
      layerChoices: () => layer,
      tied: isTied(config, false),
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}
