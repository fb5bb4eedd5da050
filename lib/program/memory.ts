/**
 * Memory planning: an offset in the arena for every activation. Two buffers share bytes only if every
 * use of one is ordered before every use of the other by lanes and waits, so sharing adds no hazard.
 * Greedy by size (Pisarchyk & Lee, https://arxiv.org/abs/2001.03288): the largest buffer first, each
 * into the smallest gap it fits between the buffers that it may not share with.
 */

import { accessesOf, type Clock, earliest, isCovered, NEVER } from './hazards.ts'
import { computeClocks, withOp } from './order.ts'
import { maxBytes } from './shapes.ts'
import type { Program } from './types.ts'

export const ARENA_ALIGNMENT = 64

interface Placement {
  readonly buffer: number
  /** Rounded up to the alignment. */
  readonly bytes: number
  /** What is done before the first of its uses: common to all of them. */
  before: Clock
  /** Its last use on each lane. */
  last: Clock
  offset: number
}

/** Needs final lanes and waits. Sets every arena buffer's offset, and arenaBytes. */
export function planMemory(program: Program): Program {
  const placements = findLifetimes(program)
  const bySize = [...placements.values()].sort((a, b) => b.bytes - a.bytes || a.buffer - b.buffer)
  const placed: Placement[] = []
  for (const placement of bySize) {
    const others = placed.filter((other) => !mayShare(placement, other))
    placement.offset = findGap(placement.bytes, others)
    insertByOffset(placed, placement)
  }
  const arenaBytes = placed.reduce((end, { offset, bytes }) => Math.max(end, offset + bytes), 0)
  const buffers = program.buffers.map((buffer, index) => {
    if (buffer.space !== 'arena') return buffer
    return { ...buffer, offset: placements.get(index)?.offset ?? 0 }
  })
  return { ...program, buffers, arenaBytes }
}

const ALWAYS: Clock = [Infinity, Infinity, Infinity]

function findLifetimes(program: Program): Map<number, Placement> {
  const placements = new Map<number, Placement>()
  const clocks = computeClocks(program)
  const lastWrite = new Map<number, boolean>()
  program.ops.forEach((op, index) => {
    for (const { view, write } of accessesOf(program, op)) {
      const buffer = program.buffers[view.buffer]!
      if (buffer.space !== 'arena') continue
      let placement = placements.get(view.buffer)
      if (placement === undefined) {
        const bytes = Math.ceil(maxBytes(buffer, program.limits) / ARENA_ALIGNMENT)
        placement = {
          buffer: view.buffer,
          bytes: bytes * ARENA_ALIGNMENT,
          // Read before it is written: given from outside, perhaps once for many steps.
          before: write ? ALWAYS : NEVER,
          last: write ? NEVER : ALWAYS,
          offset: 0,
        }
        placements.set(view.buffer, placement)
      }
      placement.before = earliest(placement.before, clocks[index]!)
      placement.last = withOp(placement.last, op.lane, index)
      lastWrite.set(view.buffer, write)
    }
  })
  for (const [buffer, isWrite] of lastWrite) {
    // Written and never read: a result of the program, in use to the end.
    if (isWrite) placements.get(buffer)!.last = ALWAYS
  }
  return placements
}

function mayShare(a: Placement, b: Placement): boolean {
  return isCovered(a.last, b.before) || isCovered(b.last, a.before)
}

/** The offset of the smallest gap of at least `bytes` between `others`, which ascend by offset. */
function findGap(bytes: number, others: readonly Placement[]): number {
  let best = -1
  let bestSize = Infinity
  let end = 0
  for (const other of others) {
    const size = other.offset - end
    if (size >= bytes && size < bestSize) {
      best = end
      bestSize = size
    }
    end = Math.max(end, other.offset + other.bytes)
  }
  return best >= 0 ? best : end
}

function insertByOffset(placed: Placement[], placement: Placement): void {
  let low = 0
  let high = placed.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (placed[middle]!.offset <= placement.offset) low = middle + 1
    else high = middle
  }
  placed.splice(low, 0, placement)
}
