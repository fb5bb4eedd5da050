/** Memory and arithmetic of a model under a layout, counted from its programs. */

import { ATTENTION_KINDS } from '../ops/index.ts'
import { extrapolate, type LayeredProgram } from '../program/layered.ts'
import { DTYPE_BYTES, type Program, type ProgramBuffer } from '../program/types.ts'
import type { Hardware } from './hardware.ts'
import { programCosts } from './op-cost.ts'
import { mixedShape } from './step-shape.ts'

export interface LayoutFootprint {
  /** Of one rank. */
  readonly weightBytes: number
  readonly kvBytesPerToken: number
  /** Parameters that a token meets, of all ranks of the group. */
  readonly activeParameters: number
}

export function layoutFootprint(hardware: Hardware, layered: LayeredProgram): LayoutFootprint {
  const whole = (valueIn: (program: Program) => number) =>
    extrapolate(layered, valueIn(layered.short), valueIn(layered.long))
  return {
    weightBytes: whole(({ buffers }) => sumOf(buffers, 'weight', bytesOf)),
    kvBytesPerToken: whole(({ buffers, limits }) =>
      sumOf(buffers, 'kv', (buffer) => bytesOf(buffer) / (limits.numBlocks * limits.blockSize)),
    ),
    activeParameters: whole((program) => parametersMet(hardware, program)),
  }
}

function sumOf(
  buffers: readonly ProgramBuffer[],
  space: ProgramBuffer['space'],
  valueIn: (buffer: ProgramBuffer) => number,
): number {
  return buffers.reduce((sum, buffer) => (buffer.space === space ? sum + valueIn(buffer) : sum), 0)
}

function bytesOf({ shape, dtype }: ProgramBuffer): number {
  return shape.reduce<number>((bytes, dim) => bytes * (dim as number), DTYPE_BYTES[dtype])
}

/** Two operations per parameter and token, attention aside. */
function parametersMet(hardware: Hardware, program: Program): number {
  const shape = mixedShape({ numTokens: 1, numDecodes: 1, context: 1, promptLength: 1 })
  const costs = programCosts(hardware, program, shape, [0, 1])
  const flops = program.ops.reduce(
    (sum, { kind }, index) => (ATTENTION_KINDS.has(kind) ? sum : sum + costs[index]!.flops),
    0,
  )
  return (flops * program.tp) / 2
}
