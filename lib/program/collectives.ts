/**
 * What the collectives of a program carry: the bytes of their results, on each rank. What a transport
 * moves for them depends on its algorithm and is not counted here.
 */

import { findOp } from '../ops/index.ts'
import { DTYPE_BYTES, type Program, type ProgramBuffer, type View } from './types.ts'

export interface CollectivePayload {
  /** For every token of a step. */
  readonly bytesPerToken: number
  /** For every row that reaches the logits. */
  readonly bytesPerRow: number
}

export function collectivePayload(program: Program): CollectivePayload {
  let bytesPerToken = 0
  let bytesPerRow = 0
  for (const { kind, outputs } of program.ops) {
    if (findOp(kind)?.collective !== true) continue
    // all_reduce_rms_norm has a second result, which every rank computes by itself.
    const [view] = outputs
    const buffer = program.buffers[view.buffer]
    const bytes = bytesOfRow(buffer) * share(view, program.parts)
    if (buffer.shape[0] === 'T') bytesPerToken += bytes
    else if (buffer.shape[0] === 'R') bytesPerRow += bytes
  }
  return { bytesPerToken, bytesPerRow }
}

function bytesOfRow({ shape, dtype }: ProgramBuffer): number {
  return shape.slice(1).reduce<number>((size, dim) => size * Number(dim), DTYPE_BYTES[dtype])
}

/** A nano-batch's op carries its rows alone. */
function share({ part }: View, parts: number): number {
  return part === undefined ? 1 : 1 / parts
}
