/** matmul_all_reduce: y = Σ over the group of (x·Wᵀ + bias), group of rows by group of rows. */

import {
  checkMatmulSum,
  type MatmulSumOperands,
  matmulSumDraft,
  OVERLAP_ATTRS,
  type OverlapAttrs,
} from './row-groups.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const matmulAllReduceOp: OpSpec = {
  name: 'matmul_all_reduce',
  inputs: ['x', 'weight', 'bias?'],
  outputs: ['partial', 'y'],
  attrs: OVERLAP_ATTRS,
  collective: true,
  lane: 'compute',
  check: checkMatmulSum,
}

export function matmulAllReduce(operands: MatmulSumOperands, attrs: OverlapAttrs): OpDraft {
  return matmulSumDraft('matmul_all_reduce', operands, attrs)
}
