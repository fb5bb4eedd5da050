/**
 * Qwen2-MoE (biases on q, k, v; a shared expert behind a sigmoid gate) and Qwen3-MoE (norms over each
 * query and key head). `decoder_sparse_step` and `mlp_only_layers` say which layers are dense.
 */

import type { JsonObject } from '../../weights/json.ts'
import { configError, flag, integer, requireActivation, unsupported } from '../config.ts'
import { readRope } from '../rope-config.ts'
import type { ExpertsSpec } from '../spec.ts'
import {
  conventionalDecoder,
  type Dimensions,
  type Family,
  type FamilyModel,
  feedForwardOf,
  isTied,
  type LayerChoices,
  readDimensions,
} from './common.ts'
import {
  EXPERT_KEYS,
  type ExpertCounts,
  expertsOf,
  HUGGING_FACE_NAMES,
  readExpertCounts,
} from './experts.ts'

const WIDTH = { min: 1, max: 2 ** 20 }

export const qwen2Moe: Family = {
  architectures: ['Qwen2MoeForCausalLM'],
  implements: EXPERT_KEYS,
  describe(config) {
    const dimensions = readDimensions(config, { eps: 1e-6, maxPositions: 32_768 })
    const counts = readExpertCounts(config, dimensions, { experts: 60, choices: 4 })
    const sharedSize = integer(config, 'shared_expert_intermediate_size', WIDTH, 5632)
    return describeQwenMoe(config, dimensions, {
      counts,
      choices: { queryKeyValueBias: flag(config, 'qkv_bias', true) },
      sharedOf: (base) => ({
        feedForward: feedForwardOf(`${base}shared_expert.`, { intermediateSize: sharedSize }, {}),
        gate: { tensor: `${base}shared_expert_gate.weight` },
      }),
    })
  },
}

export const qwen3Moe: Family = {
  architectures: ['Qwen3MoeForCausalLM'],
  implements: EXPERT_KEYS,
  describe(config) {
    const dimensions = readDimensions(config, { eps: 1e-6, maxPositions: 32_768 })
    const bias = flag(config, 'attention_bias', false)
    return describeQwenMoe(config, dimensions, {
      counts: readExpertCounts(config, dimensions, { experts: 128, choices: 8 }),
      choices: { queryKeyValueBias: bias, outputBias: bias, queryKeyNorm: true },
    })
  },
}

interface QwenMoe {
  readonly counts: ExpertCounts
  readonly choices: Omit<LayerChoices, 'rope'>
  /** Of the block whose tensor names begin with `base`. */
  readonly sharedOf?: (base: string) => NonNullable<ExpertsSpec['shared']>
}

function describeQwenMoe(
  config: JsonObject,
  dimensions: Dimensions,
  { counts, choices, sharedOf }: QwenMoe,
): FamilyModel {
  requireActivation(config, 'hidden_act', ['silu'])
  if (flag(config, 'use_sliding_window', false)) {
    throw unsupported('use_sliding_window of a Qwen with experts is not supported')
  }
  const intermediateSize = integer(config, 'moe_intermediate_size', WIDTH)
  const normalise = flag(config, 'norm_topk_prob', false)
  const isDense = readDenseLayers(config)
  const spec = conventionalDecoder(dimensions, {
    ropes: [readRope(config, { ...dimensions, defaultTheta: 10_000 })],
    layerChoices: (layer) => {
      const base = `model.layers.${layer}.mlp.`
      const experts = () =>
        expertsOf(base, counts.experts, {
          names: HUGGING_FACE_NAMES,
          intermediateSize,
          routing: { score: 'softmax', choices: counts.choices, normalise },
          ...(sharedOf && { shared: sharedOf(base) }),
        })
      return { rope: 0, ...choices, feedForward: isDense(layer) ? undefined : experts() }
    },
    tied: isTied(config, false),
  })
  return { spec, maxPositions: dimensions.maxPositions }
}

function readDenseLayers(config: JsonObject): (layer: number) => boolean {
  const step = integer(config, 'decoder_sparse_step', { min: 1, max: 1024 }, 1)
  const dense = config.mlp_only_layers ?? []
  if (!Array.isArray(dense) || !dense.every(Number.isSafeInteger)) {
    throw configError('mlp_only_layers is not a list of layers')
  }
  return (layer) => dense.includes(layer) || (layer + 1) % step !== 0
}
