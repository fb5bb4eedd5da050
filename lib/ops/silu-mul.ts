/** silu_mul: y = silu(gate)·up, [T, I] from gate_up [T, 2I], gate first. */

import type { OpDraft, OpOperands, OpSpec } from './spec.ts'

/** gate_up [T, 2I] → y [T, I]. */
export function checkGated(op: OpOperands): void {
  const width = op.activation(op.output(0))
  op.activation(op.input(0), 2 * width)
  op.alike(op.input(0), op.output(0))
}

export const siluMulOp: OpSpec = {
  name: 'silu_mul',
  inputs: ['gate_up'],
  outputs: ['y'],
  attrs: {},
  collective: false,
  lane: 'memory',
  check: checkGated,
}

export function siluMul(operands: { readonly gateUp: number; readonly y: number }): OpDraft {
  return { kind: 'silu_mul', inputs: [operands.gateUp], outputs: [operands.y], attrs: {} }
}
