/**
 * GLM-4.5-MoE: sigmoid scores with a bias for the choice, expert groups, an ungated shared expert,
 * dense first layers, rotation of half of each head. Layers that predict further tokens are left alone.
 */

import { flag, integer, requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import {
  conventionalDecoder,
  type Family,
  feedForwardOf,
  isTied,
  readDimensions,
} from './common.ts'
import {
  EXPERT_KEYS,
  expertsOf,
  HUGGING_FACE_NAMES,
  readExpertCounts,
  readSigmoidRouting,
} from './experts.ts'

const WIDTH = { min: 1, max: 2 ** 20 }

export const glm4Moe: Family = {
  architectures: ['Glm4MoeForCausalLM'],
  implements: [...EXPERT_KEYS, 'use_qk_norm'],
  describe(config) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-5, maxPositions: 131_072 })
    const counts = readExpertCounts(config, dimensions, { experts: 128, choices: 8 })
    const intermediateSize = integer(config, 'moe_intermediate_size', WIDTH)
    const sharedSize = integer(config, 'n_shared_experts', { min: 1, max: 64 }, 1)
    const firstSparse = integer(config, 'first_k_dense_replace', { min: 0, max: 1024 }, 1)
    const routing = readSigmoidRouting(config, counts)
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000, partialRotary: true })],
      layerChoices: (layer) => {
        const base = `model.layers.${layer}.mlp.`
        const shared = { intermediateSize: intermediateSize * sharedSize }
        const sparse = () =>
          expertsOf(base, counts.experts, {
            names: HUGGING_FACE_NAMES,
            intermediateSize,
            routing: { ...routing, bias: `${base}gate.e_score_correction_bias` },
            shared: { feedForward: feedForwardOf(`${base}shared_experts.`, shared, {}) },
          })
        return {
          rope: 0,
          queryKeyValueBias: flag(config, 'attention_bias', false),
          queryKeyNorm: flag(config, 'use_qk_norm', false),
          feedForward: layer < firstSparse ? undefined : sparse(),
        }
      },
      tied: isTied(config, false),
    })
    const unusedPrefix = `model.layers.${dimensions.numLayers}.`
    return { spec: { ...spec, unusedPrefix }, maxPositions: dimensions.maxPositions }
  },
}
