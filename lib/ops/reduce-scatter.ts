/** reduce_scatter: as all_reduce, but a rank writes only the rows it owns. */

import { checkSameShape } from './all-reduce.ts'
import type { CollectiveAttrs } from './collective-form.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const reduceScatterOp: OpSpec = {
  name: 'reduce_scatter',
  inputs: ['x'],
  outputs: ['y'],
  attrs: { form: 'string?' },
  collective: true,
  lane: 'network',
  check: checkSameShape,
}

export function reduceScatter(
  operands: { readonly x: number; readonly y: number },
  attrs: CollectiveAttrs = {},
): OpDraft {
  return {
    kind: 'reduce_scatter',
    inputs: [operands.x],
    outputs: [operands.y],
    attrs: definedAttrs({ form: attrs.form }),
  }
}
