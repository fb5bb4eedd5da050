/** Slots of experts: tables, copies from one placement to another, and the balancer that plans both. */

import { describe, expect, it } from 'vitest'
import { ExpertBalancer } from '../lib/parallel/balance/balancer.ts'
import { imbalance } from '../lib/parallel/balance/eplb.ts'
import { planEplb } from '../lib/parallel/balance/eplb-placement.ts'
import { placeLeastLoaded } from '../lib/parallel/balance/least-loaded-placement.ts'
import {
  buildTable,
  EMPTY,
  EXPERT_WAYS,
  homeSlots,
  positionLoads,
  type SlotLayout,
  SlotMoves,
  slotsOfPositions,
} from '../lib/parallel/balance/slots.ts'
import { createRandom, type Random } from './support/random.ts'

const LAYOUT: SlotLayout = { experts: 16, positions: 4, slotsPerPosition: 6 }

function zipf(random: Random, experts: number, total: number): number[] {
  const weights = Array.from({ length: experts }, (_, i) => 1 / (i + 1))
  for (let i = experts - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[weights[i], weights[j]] = [weights[j]!, weights[i]!]
  }
  const sum = weights.reduce((a, b) => a + b)
  return weights.map((weight) => Math.round((weight / sum) * total))
}

/** Every expert somewhere, the rest of the slots anything. */
function randomSlots(random: Random, { experts, positions, slotsPerPosition }: SlotLayout) {
  const slots = Array.from({ length: positions * slotsPerPosition }, (_, i) =>
    i < experts ? i : random.int(-1, experts - 1),
  )
  for (let i = slots.length - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[slots[i], slots[j]] = [slots[j]!, slots[i]!]
  }
  return slots
}

describe('tables', () => {
  it('begin with experts dealt in order, the last position with fewer', () => {
    expect(homeSlots({ experts: 5, positions: 3, slotsPerPosition: 3 })).toEqual([
      ...[0, 1, EMPTY],
      ...[2, 3, EMPTY],
      ...[4, EMPTY, EMPTY],
    ])
  })

  it('share rows by turns, so that few rows are spread as many are', () => {
    const table = buildTable({ slots: [0, 0, 1], shares: [1, 3, 1] }, 2)
    const first = [...table.subarray(0, EXPERT_WAYS)]
    expect(first.filter((slot) => slot === 0)).toHaveLength(8)
    for (let start = 0; start < EXPERT_WAYS; start += 4) {
      expect(first.slice(start, start + 4).filter((slot) => slot === 0)).toHaveLength(1)
    }
    expect([...table.subarray(EXPERT_WAYS)]).toEqual(new Array(EXPERT_WAYS).fill(2))
  })

  it('leave out a slot without a share', () => {
    const table = buildTable({ slots: [0, 0], shares: [1e-6, 0] }, 1)
    expect(new Set(table)).toEqual(new Set([0]))
  })

  it.each([
    [[0, 0, 0, 1], 'more experts than its 2 slots'],
    [[0, 0, 1], '3 experts of 4'],
    [[0, 1, 1, 2], 'expert 3 is on position 2'],
    [[0, 0.5, 1, 1], 'expert 1 is on position 0.5'],
  ])('refuse positions %o', (positions, why) => {
    const layout = { experts: 4, positions: 2, slotsPerPosition: 2 }
    expect(() => slotsOfPositions(positions, layout)).toThrow(why)
  })
})

describe('SlotMoves', () => {
  it.each([1, 2, 5, 24])('comes from any placement to any other, %i copies at once', (limit) => {
    const random = createRandom(limit)
    for (let trial = 0; trial < 100; trial++) {
      const experts = random.int(2, 12)
      const positions = random.int(1, 4)
      const slotsPerPosition = Math.ceil(experts / positions) + random.int(1, 2)
      const layout = { experts, positions, slotsPerPosition }
      const [held, target] = [randomSlots(random, layout), randomSlots(random, layout)]
      const moves = new SlotMoves(held, target)
      let rounds = 0
      while (!moves.isDone) {
        expect(rounds++).toBeLessThan(3 * held.length)
        const copies = moves.next(limit)
        expect(copies.length).toBeGreaterThan(0)
        expect(copies.length).toBeLessThanOrEqual(limit)
        const before = [...held]
        for (const { from, to } of copies) {
          expect(copies.some((other) => other.to === from)).toBe(false)
          expect(copies.filter((other) => other.to === to)).toHaveLength(1)
          held[to] = before[from]!
        }
        expect(moves.slots).toEqual(held)
        for (let expert = 0; expert < experts; expert++) expect(held).toContain(expert)
      }
      target.forEach((expert, slot) => {
        if (expert !== EMPTY) expect(held[slot]).toBe(expert)
      })
      expect(moves.next(limit)).toEqual([])
    }
  })

  it('copies nothing where nothing changes', () => {
    const slots = homeSlots(LAYOUT)
    expect(new SlotMoves(slots, slots).isDone).toBe(true)
  })
})

describe('placements', () => {
  it('EPLB evens Zipf loads, and the same loads again move nothing', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = createRandom(seed)
      const loads = zipf(random, LAYOUT.experts, 10_000)
      const home = homeSlots(LAYOUT)
      const placed = planEplb(loads, home, LAYOUT)
      expect(imbalance(positionLoads(loads, placed, LAYOUT))).toBeLessThan(1.15)
      const again = planEplb(loads, placed.slots, LAYOUT)
      expect(again.slots).toEqual(placed.slots)
      const kept = placed.slots.filter((expert, slot) => expert === home[slot]).length
      expect(kept).toBeGreaterThanOrEqual(LAYOUT.positions)
    }
  })

  it('least-loaded: even at prefill sizes, nothing served away at decode sizes', () => {
    const layout = { experts: 64, positions: 4, slotsPerPosition: 24 }
    const home = homeSlots(layout)
    for (let seed = 1; seed <= 20; seed++) {
      const prefill = zipf(createRandom(seed), layout.experts, 65_536)
      const placed = placeLeastLoaded(prefill, home, home, 256, layout)
      expect(imbalance(positionLoads(prefill, placed, layout))).toBeLessThanOrEqual(1.05)
      const decode = zipf(createRandom(seed), layout.experts, 256)
      const resting = placeLeastLoaded(decode, placed.slots, home, 256, layout)
      expect(resting.slots).toEqual(home)
      expect(resting.shares.filter((share, slot) => home[slot] === EMPTY && share > 0)).toEqual([])
    }
  })

  it('least-loaded takes no more foreign experts than there are spare slots', () => {
    const layout = { experts: 8, positions: 4, slotsPerPosition: 3 }
    const home = homeSlots(layout)
    const placed = placeLeastLoaded([9000, 9000, 1, 1, 1, 1, 1, 1], home, home, 1, layout)
    const foreign = placed.slots.filter((expert, slot) => home[slot] === EMPTY && expert !== EMPTY)
    expect(foreign.length).toBeGreaterThan(0)
    expect(foreign.length).toBeLessThanOrEqual(4)
  })
})

describe('ExpertBalancer', () => {
  const open = (options: Partial<ConstructorParameters<typeof ExpertBalancer>[0]> = {}) =>
    new ExpertBalancer({
      layout: LAYOUT,
      tables: [homeSlots(LAYOUT), homeSlots(LAYOUT)],
      policy: 'eplb',
      period: 4,
      copiesPerStep: 2,
      smallestMove: 64,
      ...options,
    })
  const countsOf = (...layers: number[][]) => [Int32Array.from(layers.flat())]

  it('asks for counts once a period, and says nothing else while nothing changes', () => {
    const balancer = open()
    const updates = Array.from({ length: 8 }, () => balancer.nextStep())
    expect(updates.map((update) => update?.asksCounts ?? false)).toEqual([
      ...[false, false, false, true],
      ...[false, false, false, true],
    ])
    expect(updates[3]!.copies).toEqual([])
  })

  it('goes to the plan with a few copies a step, and then rests', () => {
    const balancer = open()
    const even = new Array<number>(LAYOUT.experts).fill(10)
    const skewed = zipf(createRandom(7), LAYOUT.experts, 10_000)
    balancer.record(countsOf(skewed, even))
    const before = balancer.loads()
    expect(before.imbalance[0]).toBeGreaterThan(1.15)
    expect(before.imbalance[1]).toBe(1)
    expect(before.layersMoving).toBe(1)
    const copies = []
    for (let step = 0; balancer.loads().layersMoving > 0; step++) {
      expect(step).toBeLessThan(50)
      const update = balancer.nextStep()!
      expect(update.copies.length).toBeLessThanOrEqual(2)
      expect(update.tables.map(({ number }) => number)).toEqual([0])
      copies.push(...update.copies)
    }
    expect(balancer.loads().movedSlots).toBe(copies.length)
    balancer.record(countsOf(skewed, even))
    expect(balancer.loads().imbalance[0]).toBeLessThan(1.15)
    expect(balancer.loads().layersMoving).toBe(0)
  })

  it('does not follow chance', () => {
    const balancer = open()
    const even = new Array<number>(LAYOUT.experts).fill(1)
    const few = even.map((load, expert) => load + (expert < 2 ? 1 : 0))
    balancer.record(countsOf(few, few))
    expect(balancer.loads().imbalance[0]).toBeGreaterThan(1.3)
    expect(balancer.loads().layersMoving).toBe(0)
    const many = few.map((load) => 1000 * load)
    balancer.record(countsOf(many, many))
    expect(balancer.loads().layersMoving).toBe(2)
  })

  it('only counts when told so', () => {
    const balancer = open({ policy: 'count' })
    const skewed = zipf(createRandom(7), LAYOUT.experts, 10_000)
    balancer.record([...countsOf(skewed, skewed), ...countsOf(skewed, skewed)])
    expect(balancer.loads().experts[1]).toEqual(skewed.map((load) => 2 * load))
    expect(balancer.nextStep()).toBeUndefined()
  })

  it('sends what differs from the order of loading with the first step', () => {
    const reversed = slotsOfPositions(
      Array.from({ length: 16 }, (_, expert) => 3 - (expert >> 2)),
      LAYOUT,
    )
    const balancer = open({ tables: [homeSlots(LAYOUT), reversed] })
    const update = balancer.nextStep()!
    expect(update.tables.map(({ number }) => number)).toEqual([1])
    expect(update.tables[0]!.slots[0]).toBe(reversed.indexOf(0))
    expect(balancer.nextStep()).toBeUndefined()
  })

  it('two balancers with the same counts say the same', () => {
    const [a, b] = [open({ policy: 'least-loaded' }), open({ policy: 'least-loaded' })]
    const random = createRandom(3)
    for (let period = 0; period < 10; period++) {
      const counts = countsOf(
        zipf(random, LAYOUT.experts, random.int(10, 20_000)),
        zipf(random, LAYOUT.experts, random.int(10, 20_000)),
      )
      a.record(counts)
      b.record(counts)
      for (let step = 0; step < 6; step++) expect(a.nextStep()).toEqual(b.nextStep())
    }
    expect(a.loads().movedSlots).toBeGreaterThan(0)
  })
})
