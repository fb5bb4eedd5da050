/** reduce_scatter: as all_reduce, but a rank writes only the rows it owns. */

import { checkSameShape } from './all-reduce.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const reduceScatterOp: OpSpec = {
  name: 'reduce_scatter',
  inputs: ['x'],
  outputs: ['y'],
  attrs: {},
  collective: true,
  lane: 'network',
  check: checkSameShape,
}

export function reduceScatter(operands: { readonly x: number; readonly y: number }): OpDraft {
  return { kind: 'reduce_scatter', inputs: [operands.x], outputs: [operands.y], attrs: {} }
}
