/**
 * mean_squares: qkv [T, (Hq+2Hkv)·D] → y [T, 2] f32, this rank's term of the mean of the squares of
 * all query heads and of all key heads of the group. An all_reduce makes the means whole; they are
 * for norms that span the heads of all ranks.
 */

import type { OpDraft, OpSpec } from './spec.ts'

export const meanSquaresOp: OpSpec = {
  name: 'mean_squares',
  inputs: ['qkv'],
  outputs: ['y'],
  attrs: { heads: 'number', kv_heads: 'number', head_dim: 'number' },
  collective: false,
  lane: 'memory',
  check(op) {
    const [heads, kvHeads, headDim] = [op.size('heads'), op.size('kv_heads'), op.size('head_dim')]
    const [qkv, y] = [op.input(0), op.output(0)]
    op.activation(qkv, (heads + 2 * kvHeads) * headDim)
    op.activation(y, 2)
    op.dtype(y, 'f32')
    op.sameRows(qkv, y)
  },
}

export function meanSquares(
  operands: { readonly qkv: number; readonly y: number },
  attrs: { readonly heads: number; readonly kv_heads: number; readonly head_dim: number },
): OpDraft {
  return {
    kind: 'mean_squares',
    inputs: [operands.qkv],
    outputs: [operands.y],
    attrs: { ...attrs },
  }
}
