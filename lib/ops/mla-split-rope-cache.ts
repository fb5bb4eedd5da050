/**
 * mla_split_rope_cache: latent [T, L+R] → the tokens' slots of the latent cache, its first L elements
 * normalised, its last R rotated; and the last R columns of each head of q, rotated, → q_rope
 * [T, heads·R].
 */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const mlaSplitRopeCacheOp: OpSpec = {
  name: 'mla_split_rope_cache',
  inputs: ['q', 'latent', 'table', 'norm'],
  outputs: ['q_rope', 'kv'],
  attrs: {
    heads: 'number',
    latent_dim: 'number',
    rope_dim: 'number',
    eps: 'number',
    interleaved: 'boolean?',
  },
  collective: false,
  lane: 'memory',
  check(op) {
    const [heads, latentDim, rope] = [op.size('heads'), op.size('latent_dim'), op.size('rope_dim')]
    op.require(rope % 2 === 0, `rope_dim ${rope} is odd`)
    const [q, latent, table, qRope] = [op.input(0), op.input(1), op.input(2), op.output(0)]
    const columns = op.activation(q) / heads
    op.require(
      Number.isInteger(columns) && columns >= rope,
      `${q.name} must have at least ${rope} columns for each of ${heads} heads`,
    )
    op.activation(latent, latentDim + rope)
    op.activation(table, rope)
    op.dtype(table, 'f32')
    op.activation(qRope, heads * rope)
    op.alike(q, latent)
    op.alike(q, qRope)
    op.tokenRows(q, table)
    op.weightVector(op.input(3), latentDim)
    op.latentCache(op.output(1), latentDim + rope)
    op.requireNotNegative('eps')
  },
}

export function mlaSplitRopeCache(
  operands: {
    readonly q: number
    readonly latent: number
    readonly table: number
    readonly norm: number
    readonly qRope: number
    readonly kv: number
  },
  attrs: {
    readonly heads: number
    readonly latent_dim: number
    readonly rope_dim: number
    readonly eps: number
    /** Pairs to rotate are neighbours, (2i, 2i + 1), and not (i, i + rope_dim/2). */
    readonly interleaved?: boolean | undefined
  },
): OpDraft {
  return {
    kind: 'mla_split_rope_cache',
    inputs: [operands.q, operands.latent, operands.table, operands.norm],
    outputs: [operands.qRope, operands.kv],
    attrs: definedAttrs(attrs),
  }
}
