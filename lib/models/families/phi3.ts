/**
 * Phi-3, 3.5 and 4-mini: q, k, v in one tensor, gate and up in one, rotation of a part of each
 * head, longrope (called `su` or `yarn` in early configs).
 */

import type { JsonObject } from '../../weights/json.ts'
import { requireActivation } from '../config.ts'
import { readRope } from '../rope-config.ts'
import { conventionalDecoder, type Family, isTied, readDimensions, readWindow } from './common.ts'

export const phi3: Family = {
  architectures: ['Phi3ForCausalLM'],
  describe(config: JsonObject) {
    requireActivation(config, 'hidden_act', ['silu'])
    const dimensions = readDimensions(config, { eps: 1e-5, maxPositions: 4096 })
    const rope = readRope(
      // The architecture's default, not max_position_embeddings as elsewhere.
      { original_max_position_embeddings: 4096, ...config },
      {
        ...dimensions,
        defaultTheta: 10_000,
        partialRotary: true,
        aliases: { su: 'longrope', yarn: 'longrope' },
      },
    )
    const window = readWindow(config)
    const spec = conventionalDecoder(dimensions, {
      ropes: [rope],
      layerChoices: () => ({ rope: 0, window, fused: true }),
      tied: isTied(config, false),
    })
    return { spec, maxPositions: dimensions.maxPositions }
  },
}
