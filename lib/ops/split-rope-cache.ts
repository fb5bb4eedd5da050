/**
 * split_rope_cache: qkv [T, (Hq+2Hkv)·D] → q [T, Hq·D], and k, v into the tokens' KV slots; q and k
 * normalised per head where weights are given, then rotated by the rope table. With `means` [T, 2],
 * of the squares of all query and of all key heads, the heads are normalised together.
 */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const splitRopeCacheOp: OpSpec = {
  name: 'split_rope_cache',
  inputs: ['qkv', 'table', 'q_norm?', 'k_norm?', 'means?'],
  outputs: ['q', 'kv'],
  attrs: {
    heads: 'number',
    kv_heads: 'number',
    head_dim: 'number',
    rotary_dim: 'number',
    eps: 'number?',
  },
  collective: false,
  lane: 'memory',
  check(op) {
    const [heads, kvHeads, headDim] = [op.size('heads'), op.size('kv_heads'), op.size('head_dim')]
    const rotary = op.size('rotary_dim')
    op.require(rotary % 2 === 0 && rotary <= headDim, `rotary_dim ${rotary} of head_dim ${headDim}`)
    const [qkv, table, q] = [op.input(0), op.input(1), op.output(0)]
    op.activation(qkv, (heads + 2 * kvHeads) * headDim)
    op.activation(table, rotary)
    op.dtype(table, 'f32')
    op.activation(q, heads * headDim)
    op.alike(qkv, q)
    op.tokenRows(qkv, table)
    const means = op.optionalInput(4)
    op.weightVector(op.optionalInput(2), means ? heads * headDim : headDim)
    op.weightVector(op.optionalInput(3), means ? kvHeads * headDim : headDim)
    if (means !== undefined) {
      op.activation(means, 2)
      op.dtype(means, 'f32')
      op.tokenRows(means)
    }
    op.kvCache(op.output(1), kvHeads, headDim)
    const normalised = op.optionalInput(2) !== undefined || op.optionalInput(3) !== undefined
    op.require(!normalised || op.has('eps'), 'q_norm and k_norm need eps')
    op.requireNotNegative('eps')
  },
}

export function splitRopeCache(
  operands: {
    readonly qkv: number
    readonly table: number
    readonly qNorm?: number | undefined
    readonly kNorm?: number | undefined
    readonly means?: number | undefined
    readonly q: number
    readonly kv: number
  },
  attrs: {
    readonly heads: number
    readonly kv_heads: number
    readonly head_dim: number
    readonly rotary_dim: number
    readonly eps?: number | undefined
  },
): OpDraft {
  return {
    kind: 'split_rope_cache',
    inputs: [
      operands.qkv,
      operands.table,
      operands.qNorm ?? null,
      operands.kNorm ?? null,
      operands.means ?? null,
    ],
    outputs: [operands.q, operands.kv],
    attrs: definedAttrs(attrs),
  }
}
