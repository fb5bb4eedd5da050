/** gelu_mul: y = gelu_tanh(gate)·up, [T, I] from gate_up [T, 2I], gate first. */

import { checkGated } from './silu-mul.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const geluMulOp: OpSpec = {
  name: 'gelu_mul',
  inputs: ['gate_up'],
  outputs: ['y'],
  attrs: {},
  collective: false,
  lane: 'memory',
  check: checkGated,
}

export function geluMul(operands: { readonly gateUp: number; readonly y: number }): OpDraft {
  return { kind: 'gelu_mul', inputs: [operands.gateUp], outputs: [operands.y], attrs: {} }
}
