/**
 * head_matmul: for every head h, y_h = x_h·W_hᵀ, x [T, heads·S], y [T, heads·N]. The heads' weights
 * [N, K] lie below each other, each in the room of N rounded up to HEAD_ROW_MULTIPLE; K ≤ S, a
 * head's other columns of x are not its input.
 */

import type { OpDraft, OpSpec } from './spec.ts'

/** Rows that a head's weights take are a multiple of this. */
export const HEAD_ROW_MULTIPLE = 16

export const headMatmulOp: OpSpec = {
  name: 'head_matmul',
  inputs: ['x', 'weight'],
  outputs: ['y'],
  attrs: { heads: 'number' },
  collective: false,
  lane: 'compute',
  check(op) {
    const heads = op.size('heads')
    const [x, weight, y] = [op.input(0), op.input(1), op.output(0)]
    const [inputs, outputs] = [op.activation(x) / heads, op.activation(y) / heads]
    op.sameRows(x, y)
    op.require(
      Number.isInteger(inputs) && Number.isInteger(outputs),
      `columns of ${x.name} and ${y.name} do not divide by ${heads} heads`,
    )
    const depth = weight.shape[1] as number
    const padded = Math.ceil(outputs / HEAD_ROW_MULTIPLE) * HEAD_ROW_MULTIPLE
    op.weightMatrix(weight, heads * padded, depth)
    op.require(depth <= inputs, `${x.name} has ${inputs} columns a head, the weight ${depth}`)
  },
}

export function headMatmul(
  operands: { readonly x: number; readonly weight: number; readonly y: number },
  attrs: { readonly heads: number },
): OpDraft {
  return {
    kind: 'head_matmul',
    inputs: [operands.x, operands.weight],
    outputs: [operands.y],
    attrs: { ...attrs },
  }
}
