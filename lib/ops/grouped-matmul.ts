/**
 * grouped_matmul: y = x·W[e]ᵀ + bias[e] for the rows of each local expert e. The experts' weights
 * lie below each other, each padded to a multiple of 16 rows; counts come from the device.
 */

import { EXPERT_ROW_MULTIPLE, expertOffsets, fixedMatrix, requireFloats } from './experts.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const groupedMatmulOp: OpSpec = {
  name: 'grouped_matmul',
  inputs: ['x', 'offsets', 'weight', 'bias?'],
  outputs: ['y'],
  attrs: {},
  collective: false,
  lane: 'compute',
  perPart: true,
  check(op) {
    const [x, y] = [op.input(0), op.output(0)]
    const [rows, depth] = fixedMatrix(op, x)
    const [outRows, width] = fixedMatrix(op, y)
    op.require(rows === outRows, `${x.name} and ${y.name} have other rows`)
    requireFloats(op, x, y)
    const experts = expertOffsets(op, op.input(1))
    const padded = Math.ceil(width! / EXPERT_ROW_MULTIPLE) * EXPERT_ROW_MULTIPLE
    op.weightMatrix(op.input(2), experts * padded, depth!)
    op.weightVector(op.optionalInput(3), experts * padded)
  },
}

export function groupedMatmul(operands: {
  readonly x: number
  readonly offsets: number
  readonly weight: number
  readonly bias?: number | undefined
  readonly y: number
}): OpDraft {
  const { x, offsets, weight, bias, y } = operands
  return {
    kind: 'grouped_matmul',
    inputs: [x, offsets, weight, bias ?? null],
    outputs: [y],
    attrs: {},
  }
}
