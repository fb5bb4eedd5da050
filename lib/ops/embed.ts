/** embed: x[t] = table[token t] · scale. Rank r holds the ids of [r·V/W, (r+1)·V/W); others give zero. */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const embedOp: OpSpec = {
  name: 'embed',
  inputs: ['table'],
  outputs: ['x'],
  attrs: { scale: 'number?' },
  collective: false,
  lane: 'memory',
  check(op) {
    const hidden = op.activation(op.output(0))
    op.tokenRows(op.output(0))
    const table = op.input(0)
    op.weightMatrix(table, undefined, hidden)
    const ids = Number(table.shape[0]) * op.program.tp
    op.require(ids >= op.program.limits.vocabSize, `${table.name} holds ${ids} ids of all ranks`)
  },
}

export function embed(
  operands: { readonly table: number; readonly x: number },
  attrs: { readonly scale?: number | undefined } = {},
): OpDraft {
  return {
    kind: 'embed',
    inputs: [operands.table],
    outputs: [operands.x],
    attrs: definedAttrs(attrs),
  }
}
