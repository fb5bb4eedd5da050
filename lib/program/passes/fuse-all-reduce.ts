/**
 * fuse-all-reduce: all_reduce(partial) → x followed by add_rms_norm(x, residual, …) becomes one
 * all_reduce_rms_norm, which normalises each row once in the group instead of once per rank. The form
 * with post_weight (Gemma: norm before the add) keeps it.
 */

import { allReduceRmsNorm } from '../../ops/all-reduce-rms-norm.ts'
import { opSpec } from '../../ops/index.ts'
import type { Program, ProgramOp } from '../types.ts'
import { dropUnusedBuffers, usesOfBuffers } from '../uses.ts'

export function fuseAllReduce(program: Program): Program {
  const uses = usesOfBuffers(program)
  const fused = new Map<number, ProgramOp>()
  const removed = new Set<number>()
  program.ops.forEach((op, index) => {
    if (op.kind !== 'all_reduce') return
    const [sum, partial] = [op.outputs[0]!, op.inputs[0]!]
    // The sum is written here and read by one add_rms_norm as its x, by nothing else.
    const [writer, reader, ...others] = uses[sum.buffer]!
    if (writer !== index || reader === undefined || others.length > 0) return
    const norm = program.ops[reader]!
    if (norm.kind !== 'add_rms_norm' || norm.inputs[0]!.buffer !== sum.buffer) return
    if (norm.inputs[0]!.part !== sum.part) return
    // The partial is now read at the norm's place: it must still be there.
    if (uses[partial.buffer]!.some((use) => use > index && use <= reader)) return
    const [, residual, weight, postWeight] = norm.inputs
    const draft = allReduceRmsNorm(
      {
        partial: partial.buffer,
        residual: residual!.buffer,
        weight: weight!.buffer,
        postWeight: postWeight?.buffer,
        y: norm.outputs[0]!.buffer,
      },
      { eps: norm.attrs.eps as number },
    )
    fused.set(reader, {
      ...norm,
      kind: draft.kind,
      lane: opSpec(draft.kind).lane,
      inputs: [partial, ...norm.inputs.slice(1)],
      attrs: draft.attrs,
    })
    removed.add(index)
  })
  const ops = program.ops
    .map((op, index) => fused.get(index) ?? op)
    .filter((_, index) => !removed.has(index))
  return dropUnusedBuffers(keepResidualsWhole({ ...program, ops }))
}

/**
 * The two-shot form leaves residual rows current on one rank only. Where another kind of op reads
 * the residual after a fused one, every rank needs all rows: one_shot.
 */
function keepResidualsWhole(program: Program): Program {
  const lastPlainUse = new Map<number, number>()
  program.ops.forEach((op, index) => {
    for (const view of op.inputs) {
      if (view === null || (op.kind === 'all_reduce_rms_norm' && view === op.inputs[1])) continue
      lastPlainUse.set(view.buffer, index)
    }
  })
  const ops = program.ops.map((op, index): ProgramOp => {
    if (op.kind !== 'all_reduce_rms_norm') return op
    const readLater = (lastPlainUse.get(op.inputs[1]!.buffer) ?? -1) > index
    return readLater ? { ...op, attrs: { ...op.attrs, form: 'one_shot' } } : op
  })
  return { ...program, ops }
}
