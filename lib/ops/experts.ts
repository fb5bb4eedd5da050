/**
 * What the ops of routed experts share: rows of a fixed number (the most a rank can receive), sorted
 * by expert, with int32 offsets that say which rows are whose.
 */

import type { Dtype, ProgramBuffer } from '../program/types.ts'
import type { OpOperands } from './spec.ts'

/** Rows of an expert's weights begin at multiples of this. */
export const EXPERT_ROW_MULTIPLE = 16

export const MAX_EXPERTS = 1024
export const MAX_CHOICES = 32

/** [rows, cols] of fixed size in the arena. */
export function fixedMatrix(op: OpOperands, buffer: ProgramBuffer, cols?: number): number[] {
  const { name, space, shape } = buffer
  op.require(
    space === 'arena' && shape.length === 2 && shape.every((dim) => typeof dim === 'number'),
    `${name} must be a matrix of fixed size in the arena`,
  )
  op.require(cols === undefined || shape[1] === cols, `${name} must have ${cols} columns`)
  return shape as number[]
}

export function requireFloats(op: OpOperands, ...buffers: ProgramBuffer[]): void {
  for (const { name, dtype } of buffers) {
    op.require(['f32', 'bf16', 'f16'].includes(dtype), `${name} must be f32, bf16 or f16`)
  }
}

/** [n + 1] i32: rows [offsets[e], offsets[e + 1]) are local expert e's. Returns n. */
export function expertOffsets(op: OpOperands, buffer: ProgramBuffer): number {
  const { name, space, shape } = buffer
  const fits = space === 'arena' && shape.length === 1 && typeof shape[0] === 'number'
  op.require(fits && (shape[0] as number) > 1, `${name} must be a vector of offsets in the arena`)
  op.dtype(buffer, 'i32')
  return (shape[0] as number) - 1
}

/** [T, k] of `dtype`: what a token's choices are. Returns k. */
export function choices(op: OpOperands, buffer: ProgramBuffer, dtype: Dtype): number {
  const { name, space, shape } = buffer
  const [rows, k] = shape
  op.require(
    space === 'arena' && shape.length === 2 && rows === 'T' && typeof k === 'number',
    `${name} must be [T, choices] in the arena`,
  )
  op.require((k as number) <= MAX_CHOICES, `${name} has more than ${MAX_CHOICES} choices`)
  op.dtype(buffer, dtype)
  return k as number
}

/** Experts in all, and the ranks they are spread over: `experts` and `ep`. */
export function expertLayout(op: OpOperands): { experts: number; ep: number } {
  const [experts, ep] = [op.size('experts'), op.size('ep')]
  op.require(experts <= MAX_EXPERTS, `more than ${MAX_EXPERTS} experts`)
  op.require(op.program.world % ep === 0, `ep ${ep} does not divide ${op.program.world} ranks`)
  return { experts, ep }
}
