/**
 * EPLB over slots that are in use: the plan of eplb.ts names no slots that matter, so its ranks and
 * slots are renamed to keep as many experts as possible where they are. Pure.
 */

import { balanceExperts } from './eplb.ts'
import { evenShares, type Placement, type SlotLayout, type Slots } from './slots.ts'

/** Where experts of these loads should be; copies from `current` are few. */
export function planEplb(
  loads: readonly number[],
  current: Slots,
  { positions, slotsPerPosition }: SlotLayout,
): Placement {
  const slots = positions * slotsPerPosition
  const planned = balanceExperts(loads, { slots, ranks: positions, nodes: 1, groups: 1 })
  const wanted = chunks(planned, slotsPerPosition)
  const held = chunks(current, slotsPerPosition)
  const order = matchPositions(wanted, held)
  return evenShares(held.flatMap((own, position) => keepInPlace(wanted[order[position]!]!, own)))
}

function chunks(slots: Slots, size: number): Slots[] {
  return Array.from({ length: slots.length / size }, (_, i) =>
    slots.slice(i * size, (i + 1) * size),
  )
}

/** For each position, which planned one it becomes: the most in common first. */
function matchPositions(wanted: readonly Slots[], held: readonly Slots[]): number[] {
  const pairs = held.flatMap((own, position) =>
    wanted.map((plan, index) => ({ position, index, common: countCommon(plan, own) })),
  )
  pairs.sort((a, b) => b.common - a.common || a.position - b.position || a.index - b.index)
  const order = new Array<number>(held.length).fill(-1)
  const taken = new Set<number>()
  for (const { position, index } of pairs) {
    if (order[position] !== -1 || taken.has(index)) continue
    order[position] = index
    taken.add(index)
  }
  return order
}

function countCommon(plan: Slots, own: Slots): number {
  return plan.length - without(plan, own).length
}

/** What is left of `plan` when each of `own` takes one of its kind. */
function without(plan: Slots, own: Slots): number[] {
  const left = [...plan]
  for (const expert of own) {
    const at = left.indexOf(expert)
    if (at !== -1) left.splice(at, 1)
  }
  return left
}

/** The plan's experts in an order that changes the fewest of `own`. */
function keepInPlace(plan: Slots, own: Slots): number[] {
  const newcomers = without(plan, own)
  const left = [...plan]
  return own
    .map((expert) => {
      const at = left.indexOf(expert)
      return at === -1 ? undefined : left.splice(at, 1)[0]
    })
    .map((expert) => expert ?? newcomers.shift()!)
}
