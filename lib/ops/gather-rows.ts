/** gather_rows: the rows that reach the logits, [R, H] from [T, H]. */

import type { OpDraft, OpSpec } from './spec.ts'

export const gatherRowsOp: OpSpec = {
  name: 'gather_rows',
  inputs: ['x'],
  outputs: ['y'],
  attrs: {},
  collective: false,
  lane: 'memory',
  whole: true,
  check(op) {
    const [x, y] = [op.input(0), op.output(0)]
    op.activation(y, op.activation(x))
    op.tokenRows(x)
    op.require(y.shape[0] === 'R', `${y.name} must have R rows`)
    op.dtype(y, x.dtype)
  },
}

export function gatherRows(operands: { readonly x: number; readonly y: number }): OpDraft {
  return { kind: 'gather_rows', inputs: [operands.x], outputs: [operands.y], attrs: {} }
}
