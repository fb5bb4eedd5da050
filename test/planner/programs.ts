/** Programs of model presets, as the planner and the simulator work with them. */

import { buildLayered, modelPreset } from '../../lib/models/index.ts'
import { type LayeredProgram, mapLayered } from '../../lib/program/layered.ts'
import { deriveWaits } from '../../lib/program/passes/waits.ts'
import type { ProgramOp } from '../../lib/program/types.ts'

export function presetProgram(name: string, tensorParallel: number): LayeredProgram {
  const { model } = modelPreset(name)
  return buildLayered(model, {
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
}

/** No fusion of collectives and norms: what other engines run. */
export function unfused(layered: LayeredProgram): LayeredProgram {
  return mapLayered(layered, deriveWaits)
}

/**
 * What the experts of a rank made is summed there and then by an all-reduce, as other engines do it: a
 * row moves once, and through the switch. moe_combine moves the rows of every choice.
 */
export function summedByAllReduce(layered: LayeredProgram): LayeredProgram {
  return mapLayered(layered, (program) => {
    const buffers = [...program.buffers]
    const ops = program.ops.flatMap((op): ProgramOp[] => {
      if (op.kind !== 'moe_combine') return [op]
      const y = buffers[op.outputs[0]!.buffer]!
      const partial = { buffer: buffers.push({ ...y, name: `${y.name}.partial` }) - 1 }
      const expertOut = op.inputs[0]!
      const down = program.ops.find(({ outputs }) => outputs[0]!.buffer === expertOut.buffer)!
      const common = { attrs: {}, waits: [] }
      const inputs = [expertOut, down.inputs[1]!]
      const label = `${op.label}.local`
      return [
        { ...common, kind: 'grouped_glu', label, lane: 'memory', inputs, outputs: [partial] },
        { ...op, ...common, kind: 'all_reduce', inputs: [partial] },
      ]
    })
    return { ...program, buffers, ops }
  })
}
