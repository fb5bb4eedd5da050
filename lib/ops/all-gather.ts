/** all_gather: [rows, C] of each rank → [rows, C·W] on every rank; rank r's columns at r·C. */

import { type CollectiveAttrs, checkForm } from './collective-form.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const allGatherOp: OpSpec = {
  name: 'all_gather',
  inputs: ['x'],
  outputs: ['y'],
  attrs: { form: 'string?' },
  collective: true,
  lane: 'network',
  check(op) {
    const [x, y] = [op.input(0), op.output(0)]
    op.activation(y, op.activation(x) * op.program.tp)
    op.alike(x, y)
    checkForm(op)
  },
}

export function allGather(
  operands: { readonly x: number; readonly y: number },
  attrs: CollectiveAttrs = {},
): OpDraft {
  return {
    kind: 'all_gather',
    inputs: [operands.x],
    outputs: [operands.y],
    attrs: definedAttrs({ form: attrs.form }),
  }
}
