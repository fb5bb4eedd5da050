/** rms_norm: y = x / sqrt(mean(x²) + eps) · weight, [T, H]. */

import type { OpDraft, OpSpec } from './spec.ts'

export const rmsNormOp: OpSpec = {
  name: 'rms_norm',
  inputs: ['x', 'weight'],
  outputs: ['y'],
  attrs: { eps: 'number' },
  collective: false,
  lane: 'memory',
  check(op) {
    const hidden = op.activation(op.input(0))
    op.activation(op.output(0), hidden)
    op.alike(op.input(0), op.output(0))
    op.weightVector(op.input(1), hidden)
    op.requireNotNegative('eps')
  },
}

export function rmsNorm(
  operands: { readonly x: number; readonly weight: number; readonly y: number },
  attrs: { readonly eps: number },
): OpDraft {
  return {
    kind: 'rms_norm',
    inputs: [operands.x, operands.weight],
    outputs: [operands.y],
    attrs: { ...attrs },
  }
}
