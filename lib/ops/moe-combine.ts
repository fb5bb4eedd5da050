/**
 * moe_combine: y = shared expert + Σ over a token's choices, in their order, of weight · the
 * expert's output, fetched from the ranks that hold it. Float32, so a row's bits do not depend on
 * how many ranks the experts are spread over.
 */

import { choices, expertLayout, fixedMatrix, requireFloats } from './experts.ts'
import { receivedRows } from './moe-dispatch.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const moeCombineOp: OpSpec = {
  name: 'moe_combine',
  inputs: ['expert_out', 'rows', 'ids', 'weights', 'shared?', 'shared_gate?'],
  outputs: ['y'],
  attrs: { experts: 'number', ep: 'number' },
  collective: true,
  lane: 'network',
  perPart: true,
  check(op) {
    expertLayout(op)
    const y = op.output(0)
    const width = op.activation(y)
    op.tokenRows(y)
    const k = choices(op, op.input(2), 'i32')
    op.require(choices(op, op.input(3), 'f32') === k, 'ids and weights differ in choices')
    const received = receivedRows(op)
    const [outRows] = fixedMatrix(op, op.input(0), width)
    op.require(outRows === received * k, `${op.input(0).name} must have ${received * k} rows`)
    requireFloats(op, op.input(0))
    op.dtype(op.input(0), y.dtype)
    const [rows] = fixedMatrix(op, op.input(1), k)
    op.require(rows === received, `${op.input(1).name} must have ${received} rows`)
    op.dtype(op.input(1), 'i32')
    const [shared, gate] = [op.optionalInput(4), op.optionalInput(5)]
    if (shared !== undefined) {
      op.activation(shared, width)
      op.alike(shared, y)
    }
    if (gate === undefined) return
    op.require(shared !== undefined, 'shared_gate without shared')
    op.activation(gate, 1)
    op.tokenRows(gate)
    op.dtype(gate, 'f32')
  },
}

export function moeCombine(
  operands: {
    readonly expertOut: number
    readonly rows: number
    readonly ids: number
    readonly weights: number
    readonly shared?: number | undefined
    readonly sharedGate?: number | undefined
    readonly y: number
  },
  attrs: { readonly experts: number; readonly ep: number },
): OpDraft {
  const { expertOut, rows, ids, weights, shared, sharedGate, y } = operands
  return {
    kind: 'moe_combine',
    inputs: [expertOut, rows, ids, weights, shared ?? null, sharedGate ?? null],
    outputs: [y],
    attrs: { ...attrs },
  }
}
