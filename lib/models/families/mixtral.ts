/** Mixtral: Mistral with eight or more experts in every layer, softmax over all, two of them chosen. */

import { requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import { conventionalDecoder, type Family, isTied, readDimensions, readWindow } from './common.ts'
import { EXPERT_KEYS, expertsOf, readExpertCounts } from './experts.ts'

const NAMES = { router: 'gate', prefix: 'experts', gate: 'w1', up: 'w3', down: 'w2' }

export const mixtral: Family = {
  architectures: ['MixtralForCausalLM'],
  implements: EXPERT_KEYS,
  describe(config) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-5, maxPositions: 131_072, kvHeads: 8 })
    const { experts, choices } = readExpertCounts(config, dimensions, { experts: 8, choices: 2 })
    const window = readWindow(config)
    const { intermediateSize } = dimensions
    const spec = conventionalDecoder(dimensions, {
      ropes: [readRope(config, { ...dimensions, defaultTheta: 1e6 })],
      layerChoices: (layer) => ({
        rope: 0,
        window,
        feedForward: expertsOf(`model.layers.${layer}.block_sparse_moe.`, experts, {
          names: NAMES,
          intermediateSize,
          routing: { score: 'softmax', choices, normalise: true },
        }),
      }),
      tied: isTied(config, false),
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}
