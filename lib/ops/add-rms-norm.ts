/**
 * add_rms_norm: r' = residual + (post_weight ? rms(x)·post_weight : x), in the residual's buffer;
 * y = rms(r')·weight. [T, H]. x may be f32: a sum that was not rounded.
 */

import { checkGroups } from './row-groups.ts'
import { definedAttrs, type OpDraft, type OpOperands, type OpSpec } from './spec.ts'

/** Operands (x, residual, weight, post_weight?) → (y, residual), as the fused form has them too. */
export function checkAddRmsNorm(op: OpOperands): void {
  const [x, residual, y] = [op.input(0), op.input(1), op.output(0)]
  const hidden = op.activation(x)
  for (const buffer of [residual, y]) {
    op.activation(buffer, hidden)
    op.sameRows(x, buffer)
  }
  op.alike(residual, y)
  op.weightVector(op.input(2), hidden)
  op.weightVector(op.optionalInput(3), hidden)
  op.requireNotNegative('eps')
}

export const addRmsNormOp: OpSpec = {
  name: 'add_rms_norm',
  inputs: ['x', 'residual', 'weight', 'post_weight?'],
  outputs: ['y', 'residual'],
  attrs: { eps: 'number', owned_groups: 'number?' },
  collective: false,
  lane: 'memory',
  inPlace: { 1: 1 },
  check(op) {
    checkAddRmsNorm(op)
    const [x, y] = [op.input(0), op.output(0)]
    op.require(
      x.dtype === 'f32' || x.dtype === y.dtype,
      `${x.name} is ${x.dtype}, sums are f32 or ${y.dtype}`,
    )
    if (op.has('owned_groups')) checkGroups(op, 'owned_groups')
  },
}

export function addRmsNorm(
  operands: {
    readonly x: number
    readonly residual: number
    readonly weight: number
    readonly postWeight?: number | undefined
    readonly y: number
  },
  attrs: {
    readonly eps: number
    /** Only the rows that this rank owns of so many groups. */
    readonly owned_groups?: number | undefined
  },
): OpDraft {
  return {
    kind: 'add_rms_norm',
    inputs: [operands.x, operands.residual, operands.weight, operands.postWeight ?? null],
    outputs: [operands.y, operands.residual],
    attrs: definedAttrs({ ...attrs }),
  }
}
