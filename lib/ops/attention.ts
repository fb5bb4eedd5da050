/**
 * attention: causal attention over the paged KV cache, [T, Hq·D]; prefill and decode rows mixed.
 * `sinks` [Hq]: a logit per head that takes part in every softmax and brings no value.
 */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const attentionOp: OpSpec = {
  name: 'attention',
  inputs: ['q', 'kv', 'sinks?'],
  outputs: ['o'],
  attrs: {
    heads: 'number',
    kv_heads: 'number',
    head_dim: 'number',
    scale: 'number',
    softcap: 'number?',
    window: 'number?',
  },
  collective: false,
  lane: 'memory',
  check(op) {
    const [heads, kvHeads, headDim] = [op.size('heads'), op.size('kv_heads'), op.size('head_dim')]
    op.require(heads % kvHeads === 0, `${heads} heads cannot share ${kvHeads} KV heads evenly`)
    const [q, o] = [op.input(0), op.output(0)]
    op.activation(q, heads * headDim)
    op.activation(o, heads * headDim)
    op.alike(q, o)
    op.tokenRows(q)
    op.kvCache(op.input(1), kvHeads, headDim)
    op.weightVector(op.optionalInput(2), heads)
    op.requireNotNegative('softcap')
    const window = op.number('window', 1)
    op.require(Number.isInteger(window) && window > 0, `window is ${window}`)
  },
}

export function attention(
  operands: {
    readonly q: number
    readonly kv: number
    readonly sinks?: number | undefined
    readonly o: number
  },
  attrs: {
    readonly heads: number
    readonly kv_heads: number
    readonly head_dim: number
    readonly scale: number
    readonly softcap?: number | undefined
    readonly window?: number | undefined
  },
): OpDraft {
  return {
    kind: 'attention',
    inputs: [operands.q, operands.kv, operands.sinks ?? null],
    outputs: [operands.o],
    attrs: definedAttrs(attrs),
  }
}
