/**
 * Least-loaded expert parallelism over slots: experts stay at home, and what a step has too much of is
 * computed in the spare slots of other positions. Pure.
 */

import { planLeastLoaded } from './least-loaded.ts'
import { EMPTY, type Placement, type SlotLayout, type Slots } from './slots.ts'

/** So that an expert that nobody asks for is served at home all the same. */
const LEAST_SHARE = 1e-6

/**
 * `loads` are rows of one step; `homes` is what the slots were loaded with, EMPTY where spare.
 * Spare slots without a use are EMPTY: they may keep what they hold, and serve nobody.
 */
export function placeLeastLoaded(
  loads: readonly number[],
  current: Slots,
  homes: Slots,
  smallest: number,
  { positions, slotsPerPosition }: SlotLayout,
): Placement {
  const positionOf = (slot: number) => Math.floor(slot / slotsPerPosition)
  const homeOf = loads.map((_, expert) => positionOf(homes.indexOf(expert)))
  const spare = Array.from({ length: positions }, (_, position) =>
    homes.flatMap((expert, slot) =>
      expert === EMPTY && positionOf(slot) === position ? [slot] : [],
    ),
  )
  const room = spare.map((slots) => slots.length)
  const moves = planLeastLoaded(loads, homeOf, { ranks: positions, smallest, room })
  const slots: number[] = [...homes]
  const shares = homes.map((expert) =>
    expert === EMPTY ? 0 : Math.max(loads[expert]!, LEAST_SHARE),
  )
  for (const { expert, to, rows } of moves) {
    const free = spare[to]!.filter((slot) => slots[slot] === EMPTY || slots[slot] === expert)
    const slot = free.find((one) => current[one] === expert) ?? free[0]!
    slots[slot] = expert
    shares[slot] = shares[slot]! + rows
    const home = homes.indexOf(expert)
    shares[home] = Math.max(shares[home]! - rows, LEAST_SHARE)
  }
  return { slots, shares }
}
