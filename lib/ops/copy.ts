/** copy: y = x. Benches and tests. */

import { checkSameShape } from './all-reduce.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const copyOp: OpSpec = {
  name: 'copy',
  inputs: ['x'],
  outputs: ['y'],
  attrs: {},
  collective: false,
  lane: 'memory',
  check: checkSameShape,
}

export function copy(operands: { readonly x: number; readonly y: number }): OpDraft {
  return { kind: 'copy', inputs: [operands.x], outputs: [operands.y], attrs: {} }
}
