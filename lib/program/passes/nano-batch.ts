/**
 * nano-batch: splits the token dimension. Every op over T rows is cloned per part; ops over the rows
 * that reach the logits stay whole. Neighbouring ops of one lane form a group, and groups are
 * emitted part by part (group 1 of part 0, of part 1, …, group 2 of part 0, …): in each lane a part's
 * work is followed by the other parts' at the same depth, so the collective of one part runs beside
 * the compute of the next (NanoFlow, https://arxiv.org/abs/2408.12757). With a stagger of n a part
 * trails the one before it by n groups: its attention runs beside the other's feed-forward.
 */

import { EngineError } from '../../errors.ts'
import { findOp } from '../../ops/index.ts'
import { hasParts } from '../shapes.ts'
import type { Program, ProgramOp, View } from '../types.ts'

export const MAX_PARTS = 4

export function splitNanoBatches(program: Program, parts: number, stagger = 0): Program {
  if (!Number.isInteger(parts) || parts < 1 || parts > MAX_PARTS) {
    throw new EngineError('ERR_PROGRAM', `${parts} nano-batches; between 1 and ${MAX_PARTS} work`)
  }
  if (!Number.isInteger(stagger) || stagger < 0) {
    throw new EngineError('ERR_PROGRAM', `a stagger of ${stagger} groups; it counts from 0`)
  }
  if (program.parts !== 1) throw new EngineError('ERR_PROGRAM', 'the program is already split')
  if (parts === 1) return program
  const { buffers, copies } = copyForParts(program, parts)
  const ops: ProgramOp[] = []
  let pending: ProgramOp[][] = []
  const emitPending = () => {
    for (let slot = 0; slot < pending.length + stagger * (parts - 1); slot++) {
      for (let part = 0; part < parts; part++) {
        for (const op of pending[slot - part * stagger] ?? [])
          ops.push(partOf(program, op, part, copies))
      }
    }
    pending = []
  }
  for (const group of groupByLane(program)) {
    if (!isWhole(program, group[0]!)) {
      pending.push(group)
      continue
    }
    emitPending()
    ops.push(...group)
  }
  emitPending()
  return { ...program, parts, buffers, ops }
}

/** copies.get(buffer)[part]: which buffer stands for one of fixed size in a part. */
type PartCopies = ReadonlyMap<number, readonly number[]>

/** What ops write for every part into buffers of fixed size, each part keeps in one of its own. */
function copyForParts(program: Program, parts: number) {
  const buffers = [...program.buffers]
  const copies = new Map<number, readonly number[]>()
  for (const { kind, outputs } of program.ops) {
    if (!findOp(kind)?.perPart) continue
    for (const { buffer } of outputs) {
      const original = program.buffers[buffer]!
      if (hasParts(original) || copies.has(buffer)) continue
      const others = Array.from({ length: parts - 1 }, (_, i) => {
        return buffers.push({ ...original, name: `${original.name}#${i + 1}` }) - 1
      })
      copies.set(buffer, [buffer, ...others])
    }
  }
  return { buffers, copies }
}

/** Ops that see all rows at once: those that produce something else than token rows. */
function isWhole(program: Program, op: ProgramOp): boolean {
  const spec = findOp(op.kind)
  if (spec?.perPart) return false
  return spec?.whole === true || program.buffers[op.outputs[0]!.buffer]!.shape[0] !== 'T'
}

/** Maximal runs of ops with the same lane, all split or all whole. */
function groupByLane(program: Program): ProgramOp[][] {
  const groups: ProgramOp[][] = []
  for (const op of program.ops) {
    const group = groups.at(-1)
    const [first] = group ?? []
    const joins =
      first !== undefined &&
      first.lane === op.lane &&
      isWhole(program, first) === isWhole(program, op)
    if (joins) group!.push(op)
    else groups.push([op])
  }
  return groups
}

function partOf(program: Program, op: ProgramOp, part: number, copies: PartCopies): ProgramOp {
  const narrow = (view: View, isRead: boolean): View => {
    const buffer = program.buffers[view.buffer]!
    if (!hasParts(buffer))
      return { ...view, buffer: copies.get(view.buffer)?.[part] ?? view.buffer }
    // Attention sees the keys of its own part and of those before it.
    return { ...view, part, ...(isRead && buffer.space === 'kv' && { upTo: true }) }
  }
  return {
    ...op,
    label: `${op.label}#${part}`,
    inputs: op.inputs.map((view) => view && narrow(view, true)),
    outputs: op.outputs.map((view) => narrow(view, false)),
  }
}
