/** Sizes of buffers at a program's limits, and small questions about views. */

import { type Dim, DTYPE_BYTES, type ProgramBuffer, type ProgramLimits } from './types.ts'

/** The most a dimension can be in a step. */
export function maxDim(dim: Dim, limits: ProgramLimits): number {
  if (dim === 'T') return limits.maxTokens
  if (dim === 'R') return limits.maxRows
  if (dim === 'S') return limits.maxSeqs
  return dim
}

/** Bytes of a buffer at the limits. */
export function maxBytes(buffer: ProgramBuffer, limits: ProgramLimits): number {
  return buffer.shape.reduce<number>(
    (bytes, dim) => bytes * maxDim(dim, limits),
    DTYPE_BYTES[buffer.dtype],
  )
}

/** Buffers whose first dimension is T, and KV caches, may be seen in parts. */
export function hasParts(buffer: ProgramBuffer): boolean {
  return buffer.space === 'kv' || buffer.shape[0] === 'T'
}
