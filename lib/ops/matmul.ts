/** matmul: y = x·Wᵀ + bias, [T, N]. bias_on rank0: a row-parallel bias, added by one rank only. */

import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const matmulOp: OpSpec = {
  name: 'matmul',
  inputs: ['x', 'weight', 'bias?'],
  outputs: ['y'],
  attrs: { bias_on: 'string?' },
  collective: false,
  lane: 'compute',
  check(op) {
    const [x, y] = [op.input(0), op.output(0)]
    const depth = op.activation(x)
    const width = op.activation(y)
    op.sameRows(x, y)
    op.weightMatrix(op.input(1), width, depth)
    op.weightVector(op.optionalInput(2), width)
    const on = op.op.attrs.bias_on
    op.require(on === undefined || on === 'all' || on === 'rank0', `bias_on is ${on}`)
  },
}

export function matmul(
  operands: {
    readonly x: number
    readonly weight: number
    readonly bias?: number | undefined
    readonly y: number
  },
  attrs: { readonly bias_on?: 'all' | 'rank0' | undefined } = {},
): OpDraft {
  return {
    kind: 'matmul',
    inputs: [operands.x, operands.weight, operands.bias ?? null],
    outputs: [operands.y],
    attrs: definedAttrs(attrs),
  }
}
