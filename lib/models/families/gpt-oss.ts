/**
 * gpt-oss: sliding and full attention in turn, a sink in every softmax, biases everywhere, experts
 * with a clamped activation whose weights are a softmax over the chosen. The matrices of all experts
 * of a layer are one tensor, gates and ups in turn: MXFP4 as published, or floats with input
 * features first.
 */

import type { JsonObject } from '../../weights/json.ts'
import type { TensorIndex } from '../../weights/safetensors.ts'
import { MXFP4_BLOCKS } from '../../weights/stored.ts'
import { configError, flag, number, requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import type { ExpertsSpec, LinearSpec } from '../spec.ts'
import {
  conventionalDecoder,
  type Dimensions,
  type Family,
  isTied,
  readDimensions,
  readLayerTypes,
  readWindow,
  windowsOf,
} from './common.ts'
import { EXPERT_KEYS, type ExpertCounts, readExpertCounts } from './experts.ts'

/** Of the sigmoid in the activation; not in configs. */
const ALPHA = 1.702

export const gptOss: Family = {
  architectures: ['GptOssForCausalLM'],
  implements: EXPERT_KEYS,
  describe(config, tensors) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, {
      eps: 1e-5,
      maxPositions: 131_072,
      kvHeads: 8,
      headDim: 64,
    })
    const counts = readExpertCounts(config, dimensions, { experts: 128, choices: 4 })
    const limit = number(config, 'swiglu_limit', { min: 1e-3, max: 1e6 }, 7)
    const types = readLayerTypes(config, dimensions.numLayers, (layer) =>
      layer % 2 === 0 ? 'sliding_attention' : 'full_attention',
    )
    const windows = windowsOf(types, readWindow(config, 128))
    const bias = flag(config, 'attention_bias', true)
    requireRope(config)
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 150_000 })],
      layerChoices: (layer) => ({
        rope: 0,
        window: windows[layer],
        queryKeyValueBias: bias,
        outputBias: bias,
        sinks: true,
        feedForward: expertsOf(`model.layers.${layer}.mlp.`, tensors, dimensions, counts, limit),
      }),
      tied: isTied(config, false),
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}

/** The architecture is not the same without its scaling; null says that there is none. */
function requireRope(config: JsonObject): void {
  if (Object.hasOwn(config, 'rope_scaling') || Object.hasOwn(config, 'rope_parameters')) return
  throw configError('rope_scaling is missing')
}

function expertsOf(
  base: string,
  tensors: TensorIndex,
  { intermediateSize }: Dimensions,
  { experts, choices }: ExpertCounts,
  limit: number,
): ExpertsSpec {
  const matrices = (name: string, rows?: LinearSpec['rows']): LinearSpec[] => {
    const tensor = `${base}experts.${name}`
    const blocks = `${tensor}${MXFP4_BLOCKS}`
    const stored = tensors.tensors.has(blocks)
      ? { tensor: blocks }
      : { tensor, transposed: true as const }
    return Array.from({ length: experts }, (_, plane) => ({
      ...stored,
      plane,
      bias: `${tensor}_bias`,
      ...(rows && { rows }),
    }))
  }
  const everySecond = (start: number) => ({ start, count: intermediateSize, step: 2 })
  return {
    kind: 'experts',
    activation: 'clamped_silu',
    clamp: { alpha: ALPHA, limit },
    intermediateSize,
    router: { tensor: `${base}router.weight`, bias: `${base}router.bias` },
    routing: { score: 'softmax_chosen', choices },
    gates: matrices('gate_up_proj', everySecond(0)),
    ups: matrices('gate_up_proj', everySecond(1)),
    downs: matrices('down_proj'),
  }
}
