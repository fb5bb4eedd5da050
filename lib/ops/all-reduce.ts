/** all_reduce: y = sum of x over the group, in rank order, float32, one rounding. */

import { type CollectiveAttrs, checkForm } from './collective-form.ts'
import { definedAttrs, type OpDraft, type OpOperands, type OpSpec } from './spec.ts'

/** x → y of the same rows, width and dtype. */
export function checkSameShape(op: OpOperands): void {
  checkForm(op)
  op.activation(op.output(0), op.activation(op.input(0)))
  op.alike(op.input(0), op.output(0))
}

export const allReduceOp: OpSpec = {
  name: 'all_reduce',
  inputs: ['x'],
  outputs: ['y'],
  attrs: { form: 'string?' },
  collective: true,
  lane: 'network',
  check: checkSameShape,
}

export function allReduce(
  operands: { readonly x: number; readonly y: number },
  attrs: CollectiveAttrs = {},
): OpDraft {
  return {
    kind: 'all_reduce',
    inputs: [operands.x],
    outputs: [operands.y],
    attrs: definedAttrs({ form: attrs.form }),
  }
}
