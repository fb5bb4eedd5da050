/**
 * An independent check of schedules: the full reachability relation of lanes and waits, and every
 * pair of accesses to common bytes. Slow and plain, to be compared with what lib/program derives.
 */

import { maxBytes } from '../../lib/program/shapes.ts'
import type { Program, View } from '../../lib/program/types.ts'

/** before[i] has the ops that are certain to be done when op i starts. */
export function reachability(program: Program): Set<number>[] {
  const before: Set<number>[] = []
  program.ops.forEach((op, index) => {
    const direct = [...op.waits]
    for (let earlier = index - 1; earlier >= 0; earlier--) {
      if (program.ops[earlier]!.lane !== op.lane) continue
      direct.push(earlier)
      break
    }
    const all = new Set(direct)
    for (const op of direct) for (const other of before[op]!) all.add(other)
    before.push(all)
  })
  return before
}

interface Use {
  readonly op: number
  readonly view: View
  readonly write: boolean
}

function partsOf(view: View, parts: number): number[] {
  if (view.part === undefined) return Array.from({ length: parts }, (_, part) => part)
  return view.upTo ? Array.from({ length: view.part + 1 }, (_, part) => part) : [view.part]
}

/** Pairs of ops that touch the same bytes, one of them writing, and that nothing orders. */
export function findRaces(program: Program): string[] {
  const before = reachability(program)
  const uses: Use[] = program.ops.flatMap((op, index) => [
    ...op.inputs.flatMap((view) => (view ? [{ op: index, view, write: false }] : [])),
    ...op.outputs.map((view) => ({ op: index, view, write: true })),
  ])
  const races: string[] = []
  for (const a of uses) {
    for (const b of uses) {
      if (a.op >= b.op || (!a.write && !b.write) || before[b.op]!.has(a.op)) continue
      if (!meet(program, a, b)) continue
      races.push(`${program.ops[a.op]!.label} and ${program.ops[b.op]!.label}`)
    }
  }
  return races
}

function meet(program: Program, a: Use, b: Use): boolean {
  const [x, y] = [program.buffers[a.view.buffer]!, program.buffers[b.view.buffer]!]
  if (x === y) {
    // Slots of a KV cache are append-only: only a read after a write is a hazard.
    if (x.space === 'kv' && !(a.write && !b.write)) return false
    const others = partsOf(b.view, program.parts)
    return partsOf(a.view, program.parts).some((part) => others.includes(part))
  }
  if (x.offset === undefined || y.offset === undefined) return false
  const endOf = (buffer: typeof x) => buffer.offset! + maxBytes(buffer, program.limits)
  return x.offset < endOf(y) && y.offset < endOf(x)
}
