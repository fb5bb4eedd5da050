/** OLMoE: norms over all query and all key heads together, experts in every layer. */

import { flag, requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import { conventionalDecoder, type Family, isTied, readDimensions } from './common.ts'
import { EXPERT_KEYS, expertsOf, HUGGING_FACE_NAMES, readExpertCounts } from './experts.ts'

export const olmoe: Family = {
  architectures: ['OlmoeForCausalLM'],
  implements: EXPERT_KEYS,
  describe(config) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-5, maxPositions: 4096 })
    const { experts, choices } = readExpertCounts(config, dimensions, { experts: 64, choices: 8 })
    const normalise = flag(config, 'norm_topk_prob', false)
    const bias = flag(config, 'attention_bias', false)
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000 })],
      layerChoices: (layer) => ({
        rope: 0,
        queryKeyValueBias: bias,
        outputBias: bias,
        queryKeyNorm: 'all',
        feedForward: expertsOf(`model.layers.${layer}.mlp.`, experts, {
          names: HUGGING_FACE_NAMES,
          intermediateSize: dimensions.intermediateSize,
          routing: { score: 'softmax', choices, normalise },
        }),
      }),
      tied: isTied(config, false),
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}
