/**
 * Runs programs on hashes instead of numbers, in any order that lanes and waits allow. A row of a
 * buffer holds one 32-bit value, written over all its bytes of a shared arena, so a schedule or a memory
 * plan that is wrong changes the result. A fused op computes what its two halves would.
 */

import { DTYPE_BYTES, type Program, type ProgramOp, type View } from '../../lib/program/types.ts'
import type { Random } from './random.ts'

export interface SymbolicStep {
  readonly numTokens: number
  /** Token rows that reach the logits. */
  readonly rows: readonly number[]
  /** parts + 1 row numbers. */
  readonly bounds: readonly number[]
}

function mix(...values: readonly number[]): number {
  let hash = 0x811c9dc5
  for (const value of values) {
    hash = Math.imul(hash ^ (value & 0xffff), 0x01000193)
    hash = Math.imul(hash ^ (value >>> 16), 0x01000193)
    hash ^= hash >>> 13
  }
  return hash | 0
}

function hashText(text: string): number {
  return mix(...Array.from(text, (char) => char.codePointAt(0)!))
}

/** The values of the last op's first output, row by row. */
export function runSymbolic(program: Program, step: SymbolicStep, random?: Random): number[] {
  const order = random ? randomOrder(program, random) : program.ops.map((_, index) => index)
  const arena = new Int32Array(program.arenaBytes / 4)
  const kv = new Map<string, number>()
  for (const index of order) runOp(program, program.ops[index]!, step, arena, kv)
  const last = program.ops.at(-1)!
  const view = last.outputs[0]!
  return rowsOf(program, view, step).map((row) => readRow(program, view, row, arena))
}

/** A random execution: each lane in order, an op only after its waits. */
function randomOrder(program: Program, random: Random): number[] {
  const queues = new Map<string, number[]>()
  program.ops.forEach((op, index) => {
    queues.set(op.lane, [...(queues.get(op.lane) ?? []), index])
  })
  const done = new Set<number>()
  const order: number[] = []
  while (order.length < program.ops.length) {
    const ready = [...queues.values()].filter(
      (queue) => queue.length > 0 && program.ops[queue[0]!]!.waits.every((wait) => done.has(wait)),
    )
    if (ready.length === 0) throw new Error('deadlock')
    const next = ready[random.int(0, ready.length - 1)]!.shift()!
    done.add(next)
    order.push(next)
  }
  return order
}

function rowsOf(program: Program, view: View, step: SymbolicStep): number[] {
  const [symbol] = program.buffers[view.buffer]!.shape
  if (symbol === 'R') return step.rows.map((_, row) => row)
  const first = view.part === undefined ? 0 : step.bounds[view.part]!
  const end = view.part === undefined ? step.numTokens : step.bounds[view.part + 1]!
  return Array.from({ length: end - first }, (_, row) => first + row)
}

function wordsOf(program: Program, view: View, row: number): [number, number] {
  const buffer = program.buffers[view.buffer]!
  const width = (buffer.shape[1] as number | undefined) ?? 1
  const words = (width * DTYPE_BYTES[buffer.dtype]) / 4
  const start = buffer.offset! / 4 + row * words
  return [start, start + words]
}

function readRow(program: Program, view: View, row: number, arena: Int32Array): number {
  const [start, end] = wordsOf(program, view, row)
  const first = arena[start]!
  // Damaged by another buffer's bytes: no longer the value that was written.
  return arena.subarray(start, end).every((word) => word === first)
    ? first
    : mix(...arena.subarray(start, end))
}

function runOp(
  program: Program,
  op: ProgramOp,
  step: SymbolicStep,
  arena: Int32Array,
  kv: Map<string, number>,
): void {
  const weights = op.inputs.map((view) => {
    const buffer = view && program.buffers[view.buffer]!
    return buffer?.space === 'weight' ? hashText(buffer.name) : 0
  })
  const activations = op.inputs.filter(
    (view) => view !== null && program.buffers[view.buffer]!.space === 'arena',
  ) as View[]
  const out = op.outputs[0]!
  const results = new Map<number, readonly number[]>()
  for (const row of rowsOf(program, out, step)) {
    const source = op.kind === 'gather_rows' ? step.rows[row]! : row
    const inputs = activations.map((view) => readRow(program, view, source, arena))
    results.set(row, computeRow(program, op, row, inputs, weights, kv))
  }
  for (const [row, values] of results) {
    op.outputs.forEach((view, index) => {
      if (program.buffers[view.buffer]!.space === 'kv') {
        kv.set(`${program.buffers[view.buffer]!.name} ${row}`, values[index]!)
      } else {
        arena.fill(values[index]!, ...wordsOf(program, view, row))
      }
    })
  }
}

/** One value per output. */
function computeRow(
  program: Program,
  op: ProgramOp,
  row: number,
  inputs: readonly number[],
  weights: readonly number[],
  kv: ReadonlyMap<string, number>,
): number[] {
  const addNorm = (x: number, residual: number) => {
    const sum = mix(residual, x, weights[3]!)
    return [mix(sum, weights[2]!), sum]
  }
  const product = () => mix(mix(hashText('matmul'), ...inputs, ...weights), 0)
  switch (op.kind) {
    case 'matmul_all_reduce':
    case 'matmul_reduce_scatter':
      return [product(), mix(1, product())]
    case 'all_gather_rows':
      return [inputs[0]!]
    case 'all_gather_matmul':
      return [inputs[0]!, product()]
    case 'embed':
    case 'rope_table':
      return [mix(hashText(op.kind), row, ...weights)]
    case 'all_reduce':
      return [mix(1, inputs[0]!)]
    case 'add_rms_norm':
      return addNorm(inputs[0]!, inputs[1]!)
    case 'all_reduce_rms_norm':
      return addNorm(mix(1, inputs[0]!), inputs[1]!)
    case 'attention': {
      const name = program.buffers[op.inputs[1]!.buffer]!.name
      // Keys that are not there yet are seen as 0, and change the result.
      const keys = Array.from({ length: row + 1 }, (_, key) => kv.get(`${name} ${key}`) ?? 0)
      return [mix(inputs[0]!, ...keys)]
    }
    default: {
      const value = mix(hashText(op.kind), ...inputs, ...weights)
      return op.outputs.map((_, index) => mix(value, index))
    }
  }
}
