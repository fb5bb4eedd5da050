/** Programs of model presets, as the planner and the simulator work with them. */

import { buildLayered, modelPreset } from '../../lib/models/index.ts'
import { withExperts } from '../../lib/planner/experts.ts'
import { type LayeredProgram, mapLayered } from '../../lib/program/layered.ts'
import { deriveWaits } from '../../lib/program/passes/waits.ts'

export function presetProgram(name: string, tensorParallel: number): LayeredProgram {
  const { model, experts } = modelPreset(name)
  const layered = buildLayered(model, {
    tensorParallel,
    precision: 'auto',
    limits: {
      maxTokens: 65536,
      maxRows: 2048,
      maxSeqs: 2048,
      numBlocks: 16384,
      blockSize: 16,
      maxBlocksPerSeq: 4096,
      numSlots: 0,
    },
  })
  if (experts === undefined) return layered
  return mapLayered(layered, (program) => withExperts(program, { ...experts, overRanks: false }))
}

/** No fusion of collectives and norms: what other engines run. */
export function unfused(layered: LayeredProgram): LayeredProgram {
  return mapLayered(layered, deriveWaits)
}
