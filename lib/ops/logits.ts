/** logits: l = x·Wᵀ in float32, [R, V/W]; with a soft cap, softcap·tanh(l/softcap). */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const logitsOp: OpSpec = {
  name: 'logits',
  inputs: ['x', 'weight'],
  outputs: ['l'],
  attrs: { softcap: 'number?' },
  collective: false,
  lane: 'compute',
  check(op) {
    const [x, l] = [op.input(0), op.output(0)]
    const depth = op.activation(x)
    const width = op.activation(l)
    op.sameRows(x, l)
    op.dtype(l, 'f32')
    op.weightMatrix(op.input(1), width, depth)
    op.requireNotNegative('softcap')
  },
}

export function logits(
  operands: { readonly x: number; readonly weight: number; readonly l: number },
  attrs: { readonly softcap?: number | undefined } = {},
): OpDraft {
  return {
    kind: 'logits',
    inputs: [operands.x, operands.weight],
    outputs: [operands.l],
    attrs: definedAttrs(attrs),
  }
}
