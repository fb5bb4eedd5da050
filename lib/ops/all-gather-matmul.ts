/** all_gather_matmul: all_gather_rows(x), then y = x·Wᵀ + bias, rows as they arrive. */

import { checkForm } from './collective-form.ts'
import { checkMatmul } from './matmul.ts'
import { checkGroups, OVERLAP_ATTRS, type OverlapAttrs } from './row-groups.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const allGatherMatmulOp: OpSpec = {
  name: 'all_gather_matmul',
  inputs: ['x', 'weight', 'bias?'],
  outputs: ['x', 'y'],
  attrs: OVERLAP_ATTRS,
  collective: true,
  lane: 'compute',
  inPlace: { 0: 0 },
  check(op) {
    const [x, y] = [op.output(0), op.output(1)]
    checkMatmul(op, y)
    op.require(x !== y, 'x and y must differ')
    checkGroups(op)
    checkForm(op)
  },
}

export function allGatherMatmul(
  operands: {
    /** Rows this rank owns before, all rows after. */
    readonly x: number
    readonly weight: number
    readonly bias?: number | undefined
    readonly y: number
  },
  attrs: OverlapAttrs,
): OpDraft {
  return {
    kind: 'all_gather_matmul',
    inputs: [operands.x, operands.weight, operands.bias ?? null],
    outputs: [operands.x, operands.y],
    attrs: definedAttrs({ ...attrs }),
  }
}
