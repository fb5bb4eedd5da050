/** matmul: y = x·Wᵀ + bias, [T, N]. bias_on rank0: a row-parallel bias, added by one rank only. */

import type { ProgramBuffer } from '../program/types.ts'
import { definedAttrs, type OpDraft, type OpOperands, type OpSpec } from './spec.ts'

/** `auto` takes what is fastest for a shape; `cublaslt` is CUDA's alone. */
export const MATMUL_IMPLEMENTATIONS = ['auto', 'own', 'cublaslt'] as const

export interface MatmulAttrs {
  readonly bias_on?: 'all' | 'rank0' | undefined
  readonly implementation?: (typeof MATMUL_IMPLEMENTATIONS)[number] | undefined
}

export const matmulOp: OpSpec = {
  name: 'matmul',
  inputs: ['x', 'weight', 'bias?'],
  outputs: ['y'],
  attrs: { bias_on: 'string?', implementation: 'string?' },
  collective: false,
  lane: 'compute',
  check: (op) => checkMatmul(op, op.output(0)),
}

/** Operands (x, weight, bias?) of a matmul whose product is `y`. */
export function checkMatmul(op: OpOperands, y: ProgramBuffer): void {
  const x = op.input(0)
  const depth = op.activation(x)
  const width = op.activation(y)
  op.sameRows(x, y)
  op.weightMatrix(op.input(1), width, depth)
  op.weightVector(op.optionalInput(2), width)
  const on = op.op.attrs.bias_on
  op.require(on === undefined || on === 'all' || on === 'rank0', `bias_on is ${on}`)
  const by = op.op.attrs.implementation ?? 'auto'
  op.require(
    (MATMUL_IMPLEMENTATIONS as readonly unknown[]).includes(by),
    `implementation is ${by}, not one of ${MATMUL_IMPLEMENTATIONS.join(', ')}`,
  )
}

export function matmul(
  operands: {
    readonly x: number
    readonly weight: number
    readonly bias?: number | undefined
    readonly y: number
  },
  attrs: MatmulAttrs = {},
): OpDraft {
  return {
    kind: 'matmul',
    inputs: [operands.x, operands.weight, operands.bias ?? null],
    outputs: [operands.y],
    attrs: definedAttrs({ ...attrs }),
  }
}
