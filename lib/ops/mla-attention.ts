/**
 * mla_attention: causal attention over the paged latent cache, queries [T, heads·L] and [T, heads·R]
 * → [T, heads·L]; every head sees the same key, [L+R], and its first L elements are the value.
 */

import type { OpDraft, OpSpec } from './spec.ts'

export const mlaAttentionOp: OpSpec = {
  name: 'mla_attention',
  inputs: ['q_latent', 'q_rope', 'kv'],
  outputs: ['o'],
  attrs: { heads: 'number', latent_dim: 'number', rope_dim: 'number', scale: 'number' },
  collective: false,
  lane: 'memory',
  check(op) {
    const [heads, latentDim, rope] = [op.size('heads'), op.size('latent_dim'), op.size('rope_dim')]
    const [qLatent, qRope, o] = [op.input(0), op.input(1), op.output(0)]
    op.activation(qLatent, heads * latentDim)
    op.activation(qRope, heads * rope)
    op.activation(o, heads * latentDim)
    op.alike(qLatent, qRope)
    op.alike(qLatent, o)
    op.tokenRows(qLatent)
    op.latentCache(op.input(2), latentDim + rope)
  },
}

export function mlaAttention(
  operands: {
    readonly qLatent: number
    readonly qRope: number
    readonly kv: number
    readonly o: number
  },
  attrs: {
    readonly heads: number
    readonly latent_dim: number
    readonly rope_dim: number
    readonly scale: number
  },
): OpDraft {
  return {
    kind: 'mla_attention',
    inputs: [operands.qLatent, operands.qRope, operands.kv],
    outputs: [operands.o],
    attrs: { ...attrs },
  }
}
