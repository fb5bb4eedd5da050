/**
 * GLM-4.5-MoE: sigmoid scores with a bias for the choice, expert groups, an ungated shared expert,
 * dense first layers, rotation of half of each head. Layers that predict further tokens are left alone.
 */

import type { JsonObject } from '../../weights/json.ts'
import { configError, flag, integer, number, requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import type { RoutingSpec } from '../spec.ts'
import {
  conventionalDecoder,
  type Family,
  feedForwardOf,
  isTied,
  readDimensions,
} from './common.ts'
import { EXPERT_KEYS, expertsOf, HUGGING_FACE_NAMES, readExpertCounts } from './experts.ts'

const WIDTH = { min: 1, max: 2 ** 20 }

export const glm4Moe: Family = {
  architectures: ['Glm4MoeForCausalLM'],
  implements: [...EXPERT_KEYS, 'use_qk_norm'],
  describe(config) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-5, maxPositions: 131_072 })
    const { experts, choices } = readExpertCounts(config, { experts: 128, choices: 8 })
    const intermediateSize = integer(config, 'moe_intermediate_size', WIDTH)
    const sharedSize = integer(config, 'n_shared_experts', { min: 1, max: 64 }, 1)
    const firstSparse = integer(config, 'first_k_dense_replace', { min: 0, max: 1024 }, 1)
    const routing = readSigmoidRouting(config, experts, choices)
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000, partialRotary: true })],
      layerChoices: (layer) => {
        const base = `model.layers.${layer}.mlp.`
        const shared = { intermediateSize: intermediateSize * sharedSize }
        const sparse = () =>
          expertsOf(base, experts, {
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

/** As DeepSeek-V3: a group is worth its two best scores with bias; weights are scores without it. */
function readSigmoidRouting(config: JsonObject, experts: number, choices: number): RoutingSpec {
  const count = integer(config, 'n_group', { min: 1, max: experts }, 1)
  const kept = integer(config, 'topk_group', { min: 1, max: count }, count)
  if (experts % count !== 0) throw configError(`${experts} experts in ${count} groups`)
  if (count > 1 && experts / count < 2) throw configError('groups have fewer than two experts')
  return {
    score: 'sigmoid',
    choices,
    normalise: flag(config, 'norm_topk_prob', true),
    scale: number(config, 'routed_scaling_factor', { min: 1e-6, max: 1e6 }, 1),
    ...(count > 1 && { groups: { count, kept, worth: 'top2' } }),
  }
}
