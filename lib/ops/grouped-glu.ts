/**
 * grouped_glu: y = act(gate)·up over the rows that a rank received, gate_up [rows, 2I] → [rows, I].
 * `clamped_silu` is gpt-oss's: gate·sigmoid(alpha·gate)·(up + 1), both clamped to `limit`.
 */

import { expertOffsets, fixedMatrix, requireFloats } from './experts.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export type GluActivation = 'silu' | 'gelu_tanh' | 'clamped_silu'

export const groupedGluOp: OpSpec = {
  name: 'grouped_glu',
  inputs: ['gate_up', 'offsets'],
  outputs: ['y'],
  attrs: { activation: 'string', alpha: 'number?', limit: 'number?' },
  collective: false,
  lane: 'memory',
  perPart: true,
  check(op) {
    const [gateUp, y] = [op.input(0), op.output(0)]
    const [rows, width] = fixedMatrix(op, y)
    const [inRows] = fixedMatrix(op, gateUp, 2 * width!)
    op.require(rows === inRows, `${gateUp.name} and ${y.name} have other rows`)
    requireFloats(op, gateUp, y)
    op.dtype(y, gateUp.dtype)
    expertOffsets(op, op.input(1))
    const { activation } = op.op.attrs
    const clamped = activation === 'clamped_silu'
    op.require(
      clamped || activation === 'silu' || activation === 'gelu_tanh',
      `activation is ${activation}`,
    )
    op.require(!clamped || (op.has('alpha') && op.number('limit') > 0), 'needs alpha and limit')
  },
}

export function groupedGlu(
  operands: { readonly gateUp: number; readonly offsets: number; readonly y: number },
  attrs: {
    readonly activation: GluActivation
    readonly alpha?: number | undefined
    readonly limit?: number | undefined
  },
): OpDraft {
  return {
    kind: 'grouped_glu',
    inputs: [operands.gateUp, operands.offsets],
    outputs: [operands.y],
    attrs: definedAttrs(attrs),
  }
}
