/**
 * overlap-matmul: a matmul whose product is summed over the group takes the sum into itself, in row
 * groups: one is moved while later ones are multiplied. Two forms:
 *
 * - `all_reduce`: matmul_all_reduce → add_rms_norm of all rows on every rank.
 * - `reduce_scatter`: matmul_reduce_scatter → add_rms_norm of a rank's own rows → all_gather_matmul in
 *   place of the matmul that reads them (TokenWeave's order, https://arxiv.org/abs/2505.11329).
 *
 * Sums are kept in float32 until they are added to the residual, as all_reduce_rms_norm does, so that a
 * row has the same bits as in the serial program.
 */

import { allGatherMatmul } from '../../ops/all-gather-matmul.ts'
import { allGatherRows } from '../../ops/all-gather-rows.ts'
import { opSpec } from '../../ops/index.ts'
import { matmulAllReduce } from '../../ops/matmul-all-reduce.ts'
import { matmulReduceScatter } from '../../ops/matmul-reduce-scatter.ts'
import type { OpDraft } from '../../ops/spec.ts'
import type { Program, ProgramOp } from '../types.ts'
import { usesOfBuffers } from '../uses.ts'

export interface MatmulOverlap {
  readonly form: 'all_reduce' | 'reduce_scatter'
  /** Row groups, 1..8. */
  readonly groups: number
}

export function overlapMatmuls(program: Program, overlap: MatmulOverlap | undefined): Program {
  if (overlap === undefined) return program
  const uses = usesOfBuffers(program)
  const sums = findSums(program, uses)
  const { groups } = overlap
  if (overlap.form === 'all_reduce') return replaceSums(program, sums, matmulAllReduce, groups)
  const scattered = sums.filter((sum) => ownsItsRows(program, uses, sums, sum))
  const changes = new Map<number, ProgramOp[]>()
  for (const { norm } of scattered) {
    const op = program.ops[norm]!
    changes.set(norm, [{ ...op, attrs: { ...op.attrs, owned_groups: groups } }])
    gatherRows(program, uses, scattered, norm, groups, changes)
  }
  return replaceSums(program, scattered, matmulReduceScatter, groups, changes)
}

/** matmul → all_reduce → add_rms_norm, by their places in the program. */
interface MatmulSum {
  readonly matmul: number
  readonly sum: number
  readonly norm: number
}

function findSums(program: Program, uses: readonly number[][]): MatmulSum[] {
  return program.ops.flatMap(({ kind, inputs, outputs }, sum) => {
    if (kind !== 'all_reduce') return []
    const partial = uses[inputs[0]!.buffer]!
    const total = uses[outputs[0]!.buffer]!
    const matmul = sum - 1
    // Nobody but the sum reads the product, nobody but the norm reads the sum.
    if (partial.length !== 2 || partial[0] !== matmul || partial[1] !== sum) return []
    if (total.length !== 2 || total[0] !== sum) return []
    const norm = total[1]!
    const isNorm =
      program.ops[norm]!.kind === 'add_rms_norm' &&
      program.ops[norm]!.inputs[0]!.buffer === outputs[0]!.buffer
    return program.ops[matmul]!.kind === 'matmul' && isNorm ? [{ matmul, sum, norm }] : []
  })
}

/**
 * From the first scattered sum on, a rank has its own rows of the residual alone: whatever reads it
 * afterwards must be the norm of another scattered sum.
 */
function ownsItsRows(
  program: Program,
  uses: readonly number[][],
  sums: readonly MatmulSum[],
  { norm }: MatmulSum,
): boolean {
  const residual = program.ops[norm]!.inputs[1]!.buffer
  const norms = sums
    .filter((other) => program.ops[other.norm]!.inputs[1]!.buffer === residual)
    .map((other) => other.norm)
  const first = Math.min(...norms)
  return uses[residual]!.every((use) => use < first || norms.includes(use))
}

/** The rows a norm leaves on their owners come together in the matmul that reads them first. */
function gatherRows(
  program: Program,
  uses: readonly number[][],
  scattered: readonly MatmulSum[],
  norm: number,
  groups: number,
  changes: Map<number, ProgramOp[]>,
): void {
  const rows = program.ops[norm]!.outputs[0]!.buffer
  const reader = uses[rows]!.find((use) => use > norm)
  const op = reader === undefined ? undefined : program.ops[reader]!
  const isMatmul = op?.kind === 'matmul' && op.inputs[0]!.buffer === rows
  if (reader === undefined || !isMatmul || scattered.some(({ matmul }) => matmul === reader)) {
    const gather = allGatherRows({ x: rows }, { groups })
    changes.get(norm)!.push(opFrom(gather, `${program.ops[norm]!.label}.all_gather`))
    return
  }
  const { attrs, label } = op!
  const [x, weight, bias] = op!.inputs
  const operands = { x: x!.buffer, weight: weight!.buffer, y: op!.outputs[0]!.buffer }
  const draft = allGatherMatmul({ ...operands, bias: bias?.buffer }, { ...attrs, groups })
  changes.set(reader, [opFrom(draft, label)])
}

function replaceSums(
  program: Program,
  sums: readonly MatmulSum[],
  make: typeof matmulAllReduce,
  groups: number,
  changes = new Map<number, ProgramOp[]>(),
): Program {
  const buffers = [...program.buffers]
  for (const { matmul, sum } of sums) {
    const { inputs, outputs, attrs, label } = program.ops[matmul]!
    const [x, weight, bias] = inputs
    const y = program.ops[sum]!.outputs[0]!.buffer
    buffers[y] = { ...buffers[y]!, dtype: 'f32' }
    const operands = { x: x!.buffer, weight: weight!.buffer, bias: bias?.buffer }
    const draft = make({ ...operands, partial: outputs[0]!.buffer, y }, { ...attrs, groups })
    changes.set(matmul, [opFrom(draft, label)])
    changes.set(sum, [])
  }
  return { ...program, buffers, ops: program.ops.flatMap((op, i) => changes.get(i) ?? [op]) }
}

function opFrom(draft: OpDraft, label: string): ProgramOp {
  const view = (buffer: number) => ({ buffer })
  return {
    kind: draft.kind,
    label,
    lane: opSpec(draft.kind).lane,
    inputs: draft.inputs.map((buffer) => (buffer === null ? null : view(buffer))),
    outputs: draft.outputs.map(view),
    attrs: draft.attrs,
    waits: [],
  }
}
