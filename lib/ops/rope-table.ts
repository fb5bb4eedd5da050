/** rope_table: per token, cos of rotary/2 angles, then sin, times attention_factor; [T, rotary] f32. */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const ropeTableOp: OpSpec = {
  name: 'rope_table',
  inputs: [],
  outputs: ['table'],
  attrs: {
    inv_freq: 'numbers',
    attention_factor: 'number?',
    dynamic_factor: 'number?',
    dynamic_base: 'number?',
    dynamic_original: 'number?',
  },
  collective: false,
  lane: 'memory',
  check(op) {
    const half = (op.op.attrs.inv_freq as readonly number[]).length
    op.require(half > 0, 'inv_freq is empty')
    op.activation(op.output(0), 2 * half)
    op.tokenRows(op.output(0))
    op.dtype(op.output(0), 'f32')
    if (!op.has('dynamic_factor')) return
    op.require(
      op.number('dynamic_factor') >= 1 && op.number('dynamic_base') > 1 && half > 1,
      'dynamic scaling needs a factor >= 1, a base > 1 and several frequencies',
    )
    op.require(op.number('dynamic_original') >= 1, 'dynamic scaling needs an original length')
  },
}

export function ropeTable(
  operands: { readonly table: number },
  attrs: {
    readonly inv_freq: readonly number[]
    readonly attention_factor?: number | undefined
    readonly dynamic_factor?: number | undefined
    readonly dynamic_base?: number | undefined
    readonly dynamic_original?: number | undefined
  },
): OpDraft {
  return {
    kind: 'rope_table',
    inputs: [],
    outputs: [operands.table],
    attrs: definedAttrs(attrs),
  }
}
