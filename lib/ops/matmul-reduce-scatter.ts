/** matmul_reduce_scatter: as matmul_all_reduce, but a rank sums and keeps only the rows it owns. */

import {
  checkMatmulSum,
  type MatmulSumOperands,
  matmulSumDraft,
  OVERLAP_ATTRS,
  type OverlapAttrs,
} from './row-groups.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const matmulReduceScatterOp: OpSpec = {
  name: 'matmul_reduce_scatter',
  inputs: ['x', 'weight', 'bias?'],
  outputs: ['partial', 'y'],
  attrs: OVERLAP_ATTRS,
  collective: true,
  lane: 'compute',
  check: checkMatmulSum,
}

export function matmulReduceScatter(operands: MatmulSumOperands, attrs: OverlapAttrs): OpDraft {
  return matmulSumDraft('matmul_reduce_scatter', operands, attrs)
}
