/**
 * all_reduce_rms_norm: all_reduce(partial), then add_rms_norm, in one collective. In the two-shot
 * form a rank keeps only the residual rows it owns current.
 */

import { checkAddRmsNorm } from './add-rms-norm.ts'
import { type CollectiveForm, checkForm } from './collective-form.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

export const allReduceRmsNormOp: OpSpec = {
  name: 'all_reduce_rms_norm',
  inputs: ['partial', 'residual', 'weight', 'post_weight?'],
  outputs: ['y', 'residual'],
  attrs: { eps: 'number', form: 'string?' },
  collective: true,
  lane: 'network',
  inPlace: { 1: 1 },
  check(op) {
    checkAddRmsNorm(op)
    op.alike(op.input(0), op.output(0))
    checkForm(op)
  },
}

export function allReduceRmsNorm(
  operands: {
    readonly partial: number
    readonly residual: number
    readonly weight: number
    readonly postWeight?: number | undefined
    readonly y: number
  },
  attrs: { readonly eps: number; readonly form?: CollectiveForm | undefined },
): OpDraft {
  return {
    kind: 'all_reduce_rms_norm',
    inputs: [operands.partial, operands.residual, operands.weight, operands.postWeight ?? null],
    outputs: [operands.y, operands.residual],
    attrs: definedAttrs(attrs),
  }
}
