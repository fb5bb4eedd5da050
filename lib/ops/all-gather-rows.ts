/** all_gather_rows: x [T, C], in place: every rank gets the rows that the others own. */

import { checkForm } from './collective-form.ts'
import { checkGroups, type RowGroupAttrs } from './row-groups.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const allGatherRowsOp: OpSpec = {
  name: 'all_gather_rows',
  inputs: ['x'],
  outputs: ['x'],
  attrs: { groups: 'number', form: 'string?' },
  collective: true,
  lane: 'network',
  inPlace: { 0: 0 },
  check(op) {
    op.activation(op.output(0))
    checkGroups(op)
    checkForm(op)
  },
}

export function allGatherRows(operands: { readonly x: number }, attrs: RowGroupAttrs): OpDraft {
  return {
    kind: 'all_gather_rows',
    inputs: [operands.x],
    outputs: [operands.x],
    attrs: definedAttrs({ ...attrs }),
  }
}
