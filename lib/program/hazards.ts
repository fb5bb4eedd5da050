/**
 * Which ops must follow which. Two accesses to a buffer conflict when one of them writes and
 * their views meet: parts are disjoint, a view of the whole meets every part, `upTo` meets parts 0..p.
 * Weights are constant, and a KV cache is only ever read after it was written within a step (slots
 * are append-only and disjoint), so writes to it conflict with later reads alone.
 */

import type { Program, ProgramOp, View } from './types.ts'

/** Where views of all rows are kept, beside parts 0..3. */
const WHOLE = 4

export interface Access {
  readonly view: View
  readonly write: boolean
}

/** Everything an op reads and writes except weights. */
export function accessesOf(program: Program, op: ProgramOp): Access[] {
  const accesses: Access[] = []
  for (const view of op.inputs) {
    if (view !== null && program.buffers[view.buffer]!.space !== 'weight') {
      accesses.push({ view, write: false })
    }
  }
  for (const view of op.outputs) accesses.push({ view, write: true })
  return accesses
}

/** Places of a buffer's history that an access meets. */
function placesMet({ part, upTo }: View): number[] {
  if (part === undefined) return [0, 1, 2, 3, WHOLE]
  if (!upTo) return [part, WHOLE]
  return [...Array.from({ length: part + 1 }, (_, p) => p), WHOLE]
}

interface History {
  /** The last op that wrote here, -1: none. */
  writer: number
  /** Ops that read here since. */
  readers: number[]
}

/**
 * For each op, the earlier ops it directly depends on, ascending: the last writer of what it reads,
 * and the last writer and later readers of what it writes.
 */
export function findDependencies(program: Program): number[][] {
  const histories = program.buffers.map((): History[] =>
    Array.from({ length: WHOLE + 1 }, () => ({ writer: -1, readers: [] })),
  )
  return program.ops.map((op, index) => {
    const found = new Set<number>()
    const accesses = accessesOf(program, op)
    for (const { view, write } of accesses) {
      const isKv = program.buffers[view.buffer]!.space === 'kv'
      if (isKv && write) continue
      for (const place of placesMet(view)) {
        const { writer, readers } = histories[view.buffer]![place]!
        if (writer >= 0) found.add(writer)
        if (write) for (const reader of readers) found.add(reader)
      }
    }
    // Reads are recorded before writes: an op that updates in place ends as the writer.
    for (const { view, write } of accesses) {
      const history = histories[view.buffer]!
      if (write) recordWrite(history, view, index)
      else for (const place of placesRead(view)) history[place]!.readers.push(index)
    }
    found.delete(index)
    return [...found].sort((a, b) => a - b)
  })
}

/** Where a read is remembered. */
function placesRead({ part, upTo }: View): number[] {
  if (part === undefined) return [WHOLE]
  return upTo ? Array.from({ length: part + 1 }, (_, p) => p) : [part]
}

function recordWrite(history: History[], { part }: View, index: number): void {
  // A write of the whole is ordered after everything before it, so it stands for all of it.
  const places = part === undefined ? [0, 1, 2, 3, WHOLE] : [part]
  for (const place of places) history[place] = { writer: index, readers: [] }
}

/** Per lane (in the order of LANES), the last op of a prefix; -1: none. */
export type Clock = readonly [number, number, number]

export const NEVER: Clock = [-1, -1, -1]

export function latest(a: Clock, b: Clock): Clock {
  return [Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.max(a[2], b[2])]
}

export function earliest(a: Clock, b: Clock): Clock {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.min(a[2], b[2])]
}

/** Whether everything in `a` is in `b`. */
export function isCovered(a: Clock, b: Clock): boolean {
  return a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]
}
