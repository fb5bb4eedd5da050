/**
 * DeepSeek-V2 and V3: multi-head latent attention, dense first layers, then experts from the best
 * groups beside a shared one. V2 scores by softmax; V3 by sigmoid with a bias for the choice. Layers
 * that predict further tokens are left alone.
 */

import type { JsonObject } from '../../weights/json.ts'
import { quote } from '../../weights/safetensors.ts'
import {
  flag,
  integer,
  number,
  optionalInteger,
  optionalString,
  requireActivation,
  unsupported,
} from '../config.ts'
import { readRope, yarnScoreFactor } from '../rope-config.ts'
import type { ExpertsSpec, LatentAttentionSpec, RopeSpec, RoutingSpec } from '../spec.ts'
import {
  conventionalDecoder,
  type Dimensions,
  type Family,
  type FamilyModel,
  feedForwardOf,
  isTied,
  readDimensions,
} from './common.ts'
import {
  EXPERT_KEYS,
  type ExpertCounts,
  expertsOf,
  HUGGING_FACE_NAMES,
  readExpertCounts,
  readGroups,
  readSigmoidRouting,
} from './experts.ts'

const WIDTH = { min: 1, max: 2 ** 20 }
const HEAD = { min: 1, max: 4096 }
const FACTOR = { min: 1e-6, max: 1e6 }
/** Of the norms inside attention, whatever rms_norm_eps is. */
const LATENT_EPS = 1e-6
const IMPLEMENTS = [...EXPERT_KEYS, 'kv_lora_rank', 'rope_interleave']

/** Routing of the layer whose router's tensors begin with `router`. */
type ReadRouting = (config: JsonObject, counts: ExpertCounts) => (router: string) => RoutingSpec

export const deepseekV2: Family = {
  architectures: ['DeepseekV2ForCausalLM'],
  implements: IMPLEMENTS,
  describe: (config) => describe(config, readSoftmaxRouting),
}

export const deepseekV3: Family = {
  architectures: ['DeepseekV3ForCausalLM'],
  implements: IMPLEMENTS,
  describe: (config) =>
    describe(config, (config, counts) => {
      requireChoice(config, 'scoring_func', ['sigmoid'])
      requireChoice(config, 'topk_method', ['noaux_tc'])
      const routing = readSigmoidRouting(config, counts)
      return (router) => ({ ...routing, bias: `${router}.e_score_correction_bias` })
    }),
}

function describe(config: JsonObject, readRouting: ReadRouting): FamilyModel {
  requireActivation(config, 'hidden_act', ['silu'])
  if (flag(config, 'attention_bias', false)) {
    throw unsupported('attention_bias = true is not supported with latent attention')
  }
  const ropeDim = integer(config, 'qk_rope_head_dim', HEAD, 64)
  const dimensions = readDimensions(config, {
    eps: 1e-6,
    headDim: ropeDim,
    maxPositions: 4096,
  })
  const rope = readRope(config, { ...dimensions, headDim: ropeDim, defaultTheta: 10_000 })
  const attention = readLatentAttention(config, dimensions, rope)
  const sparse = readSparseLayers(config, dimensions, readRouting)
  const spec = conventionalDecoder(dimensions, {
    ropes: [rope],
    layerChoices: (layer) => ({
      rope: 0,
      attention: attention(`model.layers.${layer}.self_attn.`),
      feedForward: sparse(layer),
    }),
    tied: isTied(config, false),
  })
  const unusedPrefix = `model.layers.${dimensions.numLayers}.`
  return { spec: { ...spec, unusedPrefix }, maxPositions: dimensions.maxPositions }
}

/** Attention of the layer whose tensors begin with `base`. */
function readLatentAttention(
  config: JsonObject,
  { heads, kvHeads }: Dimensions,
  rope: RopeSpec,
): (base: string) => LatentAttentionSpec {
  if (kvHeads !== heads) {
    throw unsupported(`${kvHeads} KV heads; latent attention has as many as heads`)
  }
  const ropeDim = rope.rotaryDim
  const nopeDim = integer(config, 'qk_nope_head_dim', HEAD, 128)
  const latentDim = integer(config, 'kv_lora_rank', HEAD, 512)
  const valueDim = integer(config, 'v_head_dim', HEAD, 128)
  const interleaved = flag(config, 'rope_interleave', true)
  const scale = (nopeDim + ropeDim) ** -0.5 * yarnScoreFactor(config, rope)
  const queryDim = optionalInteger(config, 'q_lora_rank', WIDTH)
  const named = (name: string) => ({ tensor: `${name}.weight` })
  return (base) => ({
    kind: 'latent',
    heads,
    nopeDim,
    ropeDim,
    valueDim,
    latentDim,
    scale,
    rope: 0,
    interleaved,
    query: named(`${base}${queryDim === undefined ? 'q_proj' : 'q_b_proj'}`),
    ...(queryDim !== undefined && {
      queryDown: {
        linear: named(`${base}q_a_proj`),
        norm: { ...named(`${base}q_a_layernorm`), eps: LATENT_EPS },
        size: queryDim,
      },
    }),
    latent: named(`${base}kv_a_proj_with_mqa`),
    latentNorm: { ...named(`${base}kv_a_layernorm`), eps: LATENT_EPS },
    keyValue: `${base}kv_b_proj.weight`,
    output: named(`${base}o_proj`),
  })
}

/** The experts of a layer, or undefined for one that is dense. */
function readSparseLayers(
  config: JsonObject,
  dimensions: Dimensions,
  readRouting: ReadRouting,
): (layer: number) => ExpertsSpec | undefined {
  const { numLayers } = dimensions
  const counts = readExpertCounts(config, dimensions)
  const routing = readRouting(config, counts)
  const intermediateSize = integer(config, 'moe_intermediate_size', WIDTH)
  const numShared = optionalInteger(config, 'n_shared_experts', { min: 0, max: 64 }) ?? 0
  const firstSparse = integer(config, 'first_k_dense_replace', { min: 0, max: numLayers }, 0)
  const every = integer(config, 'moe_layer_freq', { min: 1, max: numLayers }, 1)
  return (layer) => {
    if (layer < firstSparse || layer % every !== 0) return undefined
    const base = `model.layers.${layer}.mlp.`
    const sharedSize = { intermediateSize: intermediateSize * numShared }
    return expertsOf(base, counts.experts, {
      names: HUGGING_FACE_NAMES,
      intermediateSize,
      routing: routing(`${base}gate`),
      ...(numShared > 0 && {
        shared: { feedForward: feedForwardOf(`${base}shared_experts.`, sharedSize, {}) },
      }),
    })
  }
}

/** V2: a group is worth its best score; weights are not normalised. */
function readSoftmaxRouting(config: JsonObject, counts: ExpertCounts) {
  requireChoice(config, 'scoring_func', ['softmax'])
  const methods = ['greedy', 'group_limited_greedy'] as const
  const method = requireChoice(config, 'topk_method', methods) ?? 'greedy'
  if (flag(config, 'norm_topk_prob', false)) {
    // Published code disagrees on whether the scaling factor then applies.
    throw unsupported('norm_topk_prob = true is not supported for this architecture')
  }
  // The other method takes no notice of groups.
  const groups = method === 'group_limited_greedy' ? readGroups(config, counts) : undefined
  const routing: RoutingSpec = {
    score: 'softmax',
    choices: counts.choices,
    scale: number(config, 'routed_scaling_factor', FACTOR, 1),
    ...(groups && groups.count > 1 && { groups: { ...groups, worth: 'max' } }),
  }
  return () => routing
}

/** ERR_UNSUPPORTED_MODEL where the config names something else than `choices`. */
function requireChoice(
  config: JsonObject,
  key: string,
  choices: readonly string[],
): string | undefined {
  const value = optionalString(config, key)
  if (value !== undefined && !choices.includes(value)) {
    throw unsupported(`${key} ${quote(value)} is not supported; supported: ${choices.join(', ')}`)
  }
  return value
}
