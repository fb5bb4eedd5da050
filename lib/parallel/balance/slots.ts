/**
 * Slots: where the weights of a layer's experts lie. Each position (a rank, or the ranks that split an
 * expert's width) has equally many, and some may hold replicas. An expert table says which slot
 * serves which rows; changing a placement is a table, and copies of experts from slot to slot. Pure.
 */

import { EngineError } from '../../errors.ts'

/** Slots of an expert in its table: rows are shared among its replicas in units of 1 / 32. */
export const EXPERT_WAYS = 32

/** No expert's weights are in the slot. */
export const EMPTY = -1

export interface SlotLayout {
  readonly experts: number
  /** What the experts are spread over; slots [p · slotsPerPosition, …) are position p's. */
  readonly positions: number
  readonly slotsPerPosition: number
}

/** Expert in each slot, or EMPTY. */
export type Slots = readonly number[]

/** A placement that is wanted: what is in each slot, and its part of its expert's rows. */
export interface Placement {
  readonly slots: Slots
  /** By slot, relative to the other slots of the expert. */
  readonly shares: readonly number[]
}

/** A layer's experts go from slot to slot. */
export interface SlotCopy {
  readonly from: number
  readonly to: number
}

/** Experts dealt evenly over the positions, in order; slots beyond are empty. */
export function homeSlots({ experts, positions, slotsPerPosition }: SlotLayout): number[] {
  const homes = Math.ceil(experts / positions)
  return Array.from({ length: positions * slotsPerPosition }, (_, slot) => {
    const local = slot % slotsPerPosition
    const expert = Math.floor(slot / slotsPerPosition) * homes + local
    return local < homes && expert < experts ? expert : EMPTY
  })
}

/**
 * Expert e on position positions[e]. ERR_USAGE unless every expert has a position, and no position
 * more experts than slots.
 */
export function slotsOfPositions(
  positions: readonly number[],
  { experts, positions: count, slotsPerPosition }: SlotLayout,
): number[] {
  const slots = new Array<number>(count * slotsPerPosition).fill(EMPTY)
  const used = new Array<number>(count).fill(0)
  const refuse = (why: string) => {
    throw new EngineError('ERR_USAGE', `the placement of experts does not fit: ${why}`)
  }
  if (positions.length !== experts) refuse(`it is for ${positions.length} experts of ${experts}`)
  positions.forEach((position, expert) => {
    if (!(Number.isInteger(position) && position >= 0 && position < count))
      refuse(`expert ${expert} is on position ${position} of ${count}`)
    if (used[position]! === slotsPerPosition)
      refuse(`position ${position} has more experts than its ${slotsPerPosition} slots`)
    slots[position * slotsPerPosition + used[position]!++] = expert
  })
  return slots
}

/** Replicas share the rows of their expert evenly. */
export function evenShares(slots: Slots): Placement {
  return { slots, shares: slots.map(() => 1) }
}

/**
 * [experts, EXPERT_WAYS] slots. Shares are rounded to ways by largest remainder, at least one an
 * expert, and slots take turns, so that a few rows are already spread as many are.
 */
export function buildTable({ slots, shares }: Placement, experts: number): Int32Array {
  const slotsOf: number[][] = Array.from({ length: experts }, () => [])
  slots.forEach((expert, slot) => {
    if (expert !== EMPTY) slotsOf[expert]!.push(slot)
  })
  const table = new Int32Array(experts * EXPERT_WAYS)
  slotsOf.forEach((own, expert) => {
    const weights = own.map((slot) => shares[slot]!)
    const turns = interleave(roundToWays(weights))
    turns.forEach((index, way) => {
      table[expert * EXPERT_WAYS + way] = own[index]!
    })
  })
  return table
}

/** Whole numbers that add up to EXPERT_WAYS, in proportion to `weights`. */
function roundToWays(weights: readonly number[]): number[] {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  const exact = weights.map((weight) =>
    total > 0 ? (weight / total) * EXPERT_WAYS : EXPERT_WAYS / weights.length,
  )
  const ways = exact.map(Math.floor)
  const order = exact.map((_, i) => i)
  order.sort((a, b) => exact[b]! - ways[b]! - (exact[a]! - ways[a]!) || a - b)
  const left = EXPERT_WAYS - ways.reduce((sum, count) => sum + count, 0)
  for (const index of order.slice(0, left)) ways[index]!++
  return ways
}

/** EXPERT_WAYS turns; at each, the one that is furthest behind its count. */
function interleave(ways: readonly number[]): number[] {
  const taken = ways.map(() => 0)
  return Array.from({ length: EXPERT_WAYS }, (_, turn) => {
    let next = -1
    let behind = Number.NEGATIVE_INFINITY
    ways.forEach((count, i) => {
      const lag = (count * (turn + 1)) / EXPERT_WAYS - taken[i]!
      if (taken[i]! < count && lag > behind) {
        next = i
        behind = lag
      }
    })
    taken[next]!++
    return next
  })
}

/** Rows of each position when experts have these loads. */
export function positionLoads(
  loads: readonly number[],
  { slots, shares }: Placement,
  { positions, slotsPerPosition }: SlotLayout,
): number[] {
  const totals = loads.map(() => 0)
  slots.forEach((expert, slot) => {
    if (expert !== EMPTY) totals[expert]! += shares[slot]!
  })
  const result = new Array<number>(positions).fill(0)
  slots.forEach((expert, slot) => {
    if (expert === EMPTY) return
    const part = totals[expert]! > 0 ? shares[slot]! / totals[expert]! : 0
    result[Math.floor(slot / slotsPerPosition)]! += loads[expert]! * part
  })
  return result
}

/** FNV-1a over words, begun with the table's number; native/ops/expert_tables.cc has the same. */
export function hashTable(number: number, table: Int32Array): number {
  let hash = Math.imul((2166136261 ^ number) | 0, 16777619)
  for (const word of table) hash = Math.imul(hash ^ word, 16777619)
  return hash
}

/** A layer on its way from one content of the slots to another. */
export class SlotMoves {
  readonly #target: Slots
  #slots: number[]
  /** Holds an expert out of the way while its place is filled. */
  #parked = EMPTY

  /** Slots that the target leaves empty keep what they hold. */
  constructor(current: Slots, target: Slots) {
    this.#slots = [...current]
    this.#target = target.map((expert, slot) => (expert === EMPTY ? current[slot]! : expert))
  }

  /** After the copies so far. */
  get slots(): Slots {
    return this.#slots
  }
  get isDone(): boolean {
    return !this.#slots.some((_, slot) => this.#isWrong(slot))
  }

  /**
   * Up to `limit` copies that a step can make at once: none reads what another one writes, and every
   * expert keeps a slot. Needs one slot that is empty or holds a replica.
   */
  next(limit: number): SlotCopy[] {
    const copies: SlotCopy[] = []
    const before = [...this.#slots]
    const written = new Set<number>()
    const read = new Set<number>()
    const copy = (from: number, to: number) => {
      copies.push({ from, to })
      read.add(from)
      written.add(to)
      this.#slots[to] = before[from]!
    }
    while (copies.length < limit) {
      const to = this.#nextTarget((slot) => !written.has(slot) && !read.has(slot))
      const wanted = to === EMPTY ? EMPTY : this.#target[to]!
      const from = sourceOf(before, written, wanted)
      if (to !== EMPTY && from !== EMPTY) copy(from, to)
      else if (copies.length > 0 || !this.#park(copy)) break
    }
    return copies
  }

  /** A wrong slot that may be written: the parked one last. */
  #nextTarget(isFree: (slot: number) => boolean): number {
    const isOpen = (slot: number) => isFree(slot) && this.#isWrong(slot) && this.#isSpare(slot)
    const first = this.#slots.findIndex((_, slot) => slot !== this.#parked && isOpen(slot))
    if (first !== -1) return first
    return this.#parked !== EMPTY && isOpen(this.#parked) ? this.#parked : EMPTY
  }

  /**
   * Experts stand in each other's places: one goes to a spare slot for a while. The next to go is who
   * stands where the parked one belongs, so that every copy to a spare slot puts one in its place.
   */
  #park(copy: (from: number, to: number) => void): boolean {
    const parkedExpert = this.#parked === EMPTY ? EMPTY : this.#slots[this.#parked]!
    const places = this.#slots.flatMap((_, slot) =>
      slot !== this.#parked && this.#isWrong(slot) ? [slot] : [],
    )
    const from = places.find((slot) => this.#target[slot] === parkedExpert) ?? places[0]
    const to = this.#slots.findIndex((_, slot) => this.#isSpare(slot))
    if (from === undefined || to === -1) return false
    this.#parked = to
    copy(from, to)
    return true
  }

  #isWrong(slot: number): boolean {
    const wanted = this.#target[slot]!
    return wanted !== EMPTY && this.#slots[slot] !== wanted
  }

  #isSpare(slot: number): boolean {
    const expert = this.#slots[slot]!
    return expert === EMPTY || this.#slots.some((other, at) => other === expert && at !== slot)
  }
}

/** A slot that holds `expert` throughout the step. */
function sourceOf(before: Slots, written: ReadonlySet<number>, expert: number): number {
  if (expert === EMPTY) return EMPTY
  return before.findIndex((other, slot) => other === expert && !written.has(slot))
}
