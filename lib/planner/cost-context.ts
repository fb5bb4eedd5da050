/**
 * What a cost function sees of an op in a step, and the cost of ops that are bound by the bytes they
 * move.
 */

import { DTYPE_BYTES, type Program, type ProgramBuffer, type ProgramOp } from '../program/types.ts'
import type { Hardware } from './hardware.ts'
import type { StepShape } from './step-shape.ts'

export interface OpCost {
  /** Launch included. */
  readonly seconds: number
  /** Multiplications and additions of one rank. */
  readonly flops: number
  /** Of device memory, one rank. */
  readonly bytes: number
  /** That one rank exchanges. */
  readonly networkBytes: number
  /** Of its time, what arithmetic bounds, 0..1. */
  readonly computeShare: number
  /** Matmuls: seconds with that many of the device's units, the others held by other lanes. */
  readonly secondsWith?: (units: number) => number
  /** Kernels the host enqueues; one when absent. */
  readonly launches?: number
}

/** An op with the rows it sees in a step. */
export interface CostContext {
  readonly hardware: Hardware
  readonly program: Program
  readonly op: ProgramOp
  readonly shape: StepShape
  /** Rows of the op's part. */
  readonly begin: number
  readonly end: number
  /** Of the device, what a collective holds while it runs beside a matmul. */
  readonly networkShare: number
}

export type CostFunction = (context: CostContext) => OpCost

export const NOTHING: OpCost = { seconds: 0, flops: 0, bytes: 0, networkBytes: 0, computeShare: 0 }

export function bufferOf(
  { program, op }: CostContext,
  operand: 'inputs' | 'outputs',
  index: number,
) {
  const view = op[operand][index]
  return view ? program.buffers[view.buffer]! : undefined
}

export function rowsOf({ shape, begin, end }: CostContext, buffer: ProgramBuffer): number {
  return buffer.shape[0] === 'R' ? shape.numRows : end - begin
}

/** Columns of a matrix. */
export function colsOf(buffer: ProgramBuffer): number {
  return buffer.shape[1] as number
}

/** Bytes of the rows that the op sees of a buffer; all of it where it has no rows of the step. */
export function seenBytes(context: CostContext, buffer: ProgramBuffer): number {
  const [first, ...rest] = buffer.shape
  const rows = typeof first === 'number' ? first : rowsOf(context, buffer)
  return rest.reduce<number>(
    (bytes, dim) => bytes * (dim as number),
    rows * DTYPE_BYTES[buffer.dtype],
  )
}

/** Time is what memory needs for every operand once. */
export const streaming: CostFunction = (context) => {
  const { op, program, hardware } = context
  const operands = [...op.inputs, ...op.outputs].filter((view) => view !== null)
  const bytes = operands.reduce((sum, { buffer }) => {
    const operand = program.buffers[buffer]!
    return operand.space === 'kv' ? sum : sum + seenBytes(context, operand)
  }, 0)
  return memoryBound(hardware, bytes)
}

export function memoryBound(hardware: Hardware, bytes: number): OpCost {
  const seconds = hardware.launchSeconds + bytes / hardware.memoryBytesPerSecond
  return { seconds, flops: 0, bytes, networkBytes: 0, computeShare: 0 }
}

const PARTS = new WeakMap<Program, readonly (number | undefined)[]>()

/**
 * The part of the rows that each op works on: that of its views, else of what wrote its inputs of fixed
 * size (what was dispatched to experts). Undefined: all rows.
 */
export function partsOf(program: Program): readonly (number | undefined)[] {
  const known = PARTS.get(program)
  if (known !== undefined) return known
  const written = new Map<number, number | undefined>()
  const parts = program.ops.map(({ inputs, outputs }) => {
    const views = [...inputs, ...outputs].filter((view) => view !== null)
    const own = views.find((view) => view.part !== undefined)?.part
    const part =
      own ?? inputs.map((view) => view && written.get(view.buffer)).find((p) => p != null)
    for (const { buffer } of outputs) {
      if (typeof program.buffers[buffer]!.shape[0] === 'number')
        written.set(buffer, part ?? undefined)
    }
    return part ?? undefined
  })
  PARTS.set(program, parts)
  return parts
}
