/**
 * Row groups: what a matmul that overlaps with a collective is cut into (native/comm/protocol.h). A group is
 * moved between ranks while later ones are multiplied, and each rank owns its share of every group.
 */

import { type CollectiveAttrs, checkForm } from './collective-form.ts'
import { checkMatmul, type MatmulAttrs } from './matmul.ts'
import { definedAttrs, type OpDraft, type OpOperands } from './spec.ts'

export const MAX_ROW_GROUPS = 8

/** Groups end at multiples of so many rows, where there are enough of them. */
export const GROUP_TILE = 128

export interface RowGroupAttrs extends CollectiveAttrs {
  /** 1..8. */
  readonly groups: number
}

export interface OverlapAttrs extends RowGroupAttrs, MatmulAttrs {}

export const OVERLAP_ATTRS = {
  groups: 'number',
  bias_on: 'string?',
  implementation: 'string?',
  form: 'string?',
} as const

export interface Rows {
  readonly begin: number
  readonly end: number
}

/** Rows of `group` of `groups`. */
export function groupRows(count: number, groups: number, group: number): Rows {
  const unit = count >= groups * GROUP_TILE ? GROUP_TILE : 1
  const units = Math.ceil(count / unit)
  const bound = (index: number) => Math.min(count, Math.floor((units * index) / groups) * unit)
  return { begin: bound(group), end: bound(group + 1) }
}

/** A number of row groups in an attribute. */
export function checkGroups(op: OpOperands, attr = 'groups'): void {
  const groups = op.number(attr)
  op.require(
    Number.isInteger(groups) && groups >= 1 && groups <= MAX_ROW_GROUPS,
    `${attr} is ${groups}, between 1 and ${MAX_ROW_GROUPS} work`,
  )
}

/** Operands (x, weight, bias?) → (partial, y): a product, and its sum over the group, alike or f32. */
export function checkMatmulSum(op: OpOperands): void {
  const [partial, y] = [op.output(0), op.output(1)]
  checkMatmul(op, partial)
  op.activation(y, op.activation(partial))
  op.sameRows(partial, y)
  op.require(partial !== y, 'partial and y must differ')
  op.require(
    y.dtype === 'f32' || y.dtype === partial.dtype,
    `${y.name} is ${y.dtype}, sums are f32 or ${partial.dtype}`,
  )
  checkGroups(op)
  checkForm(op)
}

export interface MatmulSumOperands {
  readonly x: number
  readonly weight: number
  readonly bias?: number | undefined
  /** This rank's term; peers read it. */
  readonly partial: number
  readonly y: number
}

export function matmulSumDraft(
  kind: string,
  operands: MatmulSumOperands,
  attrs: OverlapAttrs,
): OpDraft {
  return {
    kind,
    inputs: [operands.x, operands.weight, operands.bias ?? null],
    outputs: [operands.partial, operands.y],
    attrs: definedAttrs({ ...attrs }),
  }
}
