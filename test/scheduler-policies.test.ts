/** What each policy decides, and what programs, pins and costs are. */

import { describe, expect, it } from 'vitest'
import { BlockRuns } from '../lib/kv/block-runs.ts'
import { HostBlocks } from '../lib/kv/host-blocks.ts'
import { createStepCosts, type StepCosts } from '../lib/scheduler/costs.ts'
import { createPolicy, ORDERS } from '../lib/scheduler/policies/index.ts'
import type { StepLoad } from '../lib/scheduler/policy.ts'
import type { Sequence } from '../lib/scheduler/sequence.ts'
import { codeOf } from './support/errors.ts'
import { createRandom } from './support/random.ts'
import { Driver, eager } from './support/schedule-driver.ts'

/** One sequence runs at a time; gives the ids in the order in which they started. */
function startOrder(driver: Driver, sequences: readonly Sequence[]): number[] {
  const started: number[] = []
  for (let i = 0; i < 2000 && driver.scheduler.numUnfinished > 0; i++) {
    if (driver.plan() === undefined || driver.inFlight.length > 1) driver.settle()
    for (const { id, firstPlannedMs } of sequences)
      if (firstPlannedMs >= 0 && !started.includes(id)) started.push(id)
  }
  driver.drain()
  return started
}

const alone = (order: string, more = {}) =>
  new Driver({ maxNumSeqs: 1, policy: createPolicy({ order }), ...more })

describe('orders', () => {
  it('fcfs: as they came', () => {
    const driver = alone('fcfs')
    const all = [driver.add(30, 3), driver.add(5, 3), driver.add(9, 3, { priority: 9 })]
    expect(startOrder(driver, all)).toEqual([0, 1, 2])
  })

  it('priority: the highest first, and age counts', () => {
    const driver = alone('priority')
    const all = [driver.add(5, 3), driver.add(5, 3, { priority: 1 })]
    driver.now = 9_000
    all.push(driver.add(5, 3, { priority: 1 }))
    driver.now = 19_000
    // Ten seconds of waiting outweigh one priority.
    all.push(driver.add(5, 3, { priority: 2 }), driver.add(5, 3, { priority: 1.5 }))
    expect(startOrder(driver, all)).toEqual([1, 3, 2, 0, 4])
  })

  it('shortest-remaining: prompt and expected output, bounded by maxTokens', () => {
    const driver = alone('shortest-remaining')
    const all = [driver.add(60, 10), driver.add(5, 100), driver.add(20, 2), driver.add(4, 2)]
    expect(startOrder(driver, all)).toEqual([3, 2, 0, 1])
  })

  it('hrrn: short ones first, long ones in the end', () => {
    const driver = alone('hrrn')
    const long = driver.add(100, 2)
    const all = [long]
    // All start with a ratio of one; as work is done, that of short ones grows faster.
    const first = driver.add(4, 2)
    all.push(first, driver.add(50, 2))
    driver.scheduler.end(first, 'cancelled')
    expect(startOrder(driver, [long, all[2]])).toEqual([0, 2])

    const busy = alone('hrrn')
    busy.add(90, 20)
    busy.plan()
    const waiting = [busy.add(100, 2), busy.add(10, 2), busy.add(40, 2)]
    expect(startOrder(busy, waiting)).toEqual([2, 3, 1])
  })

  it('longest-prefix: what the cache knows first', () => {
    const driver = alone('longest-prefix')
    const known = Array.from({ length: 40 }, (_, i) => i)
    driver.add(known, 1)
    driver.drain()
    driver.add(4, 1)
    driver.plan()
    const all = [
      driver.add(8, 1),
      driver.add([...known.slice(0, 20), 999], 1),
      driver.add([...known, 999], 1),
    ]
    expect(startOrder(driver, all)).toEqual([4, 3, 2])
    expect(all.map((sequence) => sequence.numCachedTokens)).toEqual([0, 20, 40])
  })

  it('longest-prefix: as they came where more than 128 wait', () => {
    const driver = alone('longest-prefix', { maxWaiting: 500 })
    const known = Array.from({ length: 40 }, (_, i) => i)
    driver.add(known, 1)
    driver.drain()
    const all = Array.from({ length: 130 }, () => driver.add(4, 1))
    all.push(driver.add([...known, 999], 1))
    const order = startOrder(driver, all)
    expect(order.slice(0, 2)).toEqual([1, 2])
    expect(order.indexOf(131)).toBe(3)
  })

  it('least-attained: the program that got least', () => {
    const driver = alone('least-attained')
    const all = [
      driver.add(40, 3, { program: 'a' }),
      driver.add(5, 3, { program: 'a' }),
      driver.add(5, 3, { program: 'a' }),
      driver.add(9, 3, { program: 'b' }),
      driver.add(5, 3, { program: 'b' }),
      driver.add(5, 3, { program: 'b' }),
    ]
    expect(startOrder(driver, all)).toEqual([0, 3, 4, 5, 1, 2])
  })

  it.each(ORDERS.map(({ name }) => name))('%s: nobody waits beyond the bound', (order) => {
    const driver = alone(order, { starvationMs: 60, maxWaiting: 500 })
    // Worst in every order: long, low, unknown to the cache, of a program that got much.
    const program = 'much'
    driver.add(40, 1, { program })
    driver.plan()
    const worst = driver.add(120, 40, { priority: -50, program })
    const cheap = Array.from({ length: 12 }, (_, i) => i)
    for (let i = 0; worst.firstPlannedMs < 0 && i < 200; i++) {
      driver.add(cheap, 2, { priority: 50 })
      if (driver.plan() === undefined || driver.inFlight.length > 1) driver.settle()
    }
    // The bound, and what was running when it came.
    expect(worst.firstPlannedMs).toBeLessThan(worst.arrivalMs + 60 + 8)
    if (order !== 'fcfs')
      expect(worst.decisions.map(({ reason }) => reason)).toContain('admitted_overdue')
    driver.drain()
  })

  it('are known by name only', () => {
    expect(codeOf(() => createPolicy({ order: 'toString' }))).toBe('ERR_USAGE')
    expect(codeOf(() => createPolicy({ budget: '' }))).toBe('ERR_USAGE')
    expect(createPolicy().order.name).toBe('fcfs')
  })
})

/** A step takes 1 ms and 0.01 ms a token. */
const LINEAR: StepCosts = {
  predictMs: (tokens, context, swapped) => 1 + 0.01 * tokens + 1e-6 * context + 0.1 * swapped,
  observe: () => {},
}

describe('budgets', () => {
  const load = (more: Partial<StepLoad>): StepLoad => ({
    maxNumBatchedTokens: 2048,
    numDecodes: 100,
    decodeContext: 0,
    pendingTokens: 10_000,
    prefillStart: 0,
    tpotTargetMs: Number.POSITIVE_INFINITY,
    costs: LINEAR,
    ...more,
  })

  it('dense: whole tiles, unless that is all there is', () => {
    const { budget } = createPolicy({ budget: 'dense' })
    expect(budget.tokens(load({}))).toBe(2048)
    expect(budget.tokens(load({ maxNumBatchedTokens: 2000 }))).toBe(1920)
    expect(budget.tokens(load({ pendingTokens: 500 }))).toBe(512)
    expect(budget.tokens(load({ pendingTokens: 20 }))).toBe(120)
    expect(budget.tokens(load({ numDecodes: 128, pendingTokens: 20 }))).toBe(148)
  })

  it('milliseconds: the largest chunk within the target', () => {
    const { budget } = createPolicy({ budget: 'milliseconds' })
    expect(budget.tokens(load({}))).toBe(2048)
    const random = createRandom(3)
    for (let i = 0; i < 200; i++) {
      const tpotTargetMs = random.int(1, 30)
      const prefillStart = random.int(0, 3000)
      const decodeContext = random.int(0, 1e6)
      const tokens = budget.tokens(load({ tpotTargetMs, prefillStart, decodeContext }))
      const timeOf = (count: number) => {
        const chunk = count - 100
        const context = decodeContext + chunk * (prefillStart + (chunk + 1) / 2)
        return LINEAR.predictMs(count, context, 0)
      }
      if (tokens > 100) expect(timeOf(tokens)).toBeLessThanOrEqual(tpotTargetMs)
      if (tokens < 2048) expect(timeOf(tokens + 1)).toBeGreaterThan(tpotTargetMs)
    }
  })

  it('milliseconds: prompts get a chunk now and then, however tight the target', () => {
    const driver = new Driver({
      policy: createPolicy({ budget: 'milliseconds' }),
      costs: LINEAR,
      maxModelLen: 256,
    })
    driver.add(4, 200, { tpotTargetMs: 0.5 })
    driver.plan()
    const prompt = driver.add(40, 1)
    let planned = 0
    for (let step = 0; step < 90; step++) {
      const plan = driver.plan()
      if (plan === undefined) break
      if (plan.numSeqs === 2) planned++
      expect(plan.numTokens).toBeLessThanOrEqual(9)
      driver.settle()
    }
    // 8 tokens, every 33 steps.
    expect(planned).toBe(2)
    expect(prompt.numComputed).toBe(16)
    driver.drain()
  })

  it('milliseconds: a chunk that fits beside decodes', () => {
    const driver = new Driver({
      policy: createPolicy({ budget: 'milliseconds' }),
      costs: LINEAR,
      tpotTargetMs: 1.15,
    })
    driver.add(4, 20)
    driver.plan()
    driver.add(60, 1)
    expect(driver.plan()?.numTokens).toBe(14)
    driver.drain()
  })
})

describe('step costs', () => {
  it('learn what steps take', () => {
    const costs = createStepCosts({
      perStep: 1,
      perToken: 1,
      perContextToken: 1e-4,
      perSwappedBlock: 1,
    })
    const truth = (tokens: number, context: number, swapped: number) =>
      3 + 0.05 * tokens + 2e-5 * context + 0.2 * swapped
    const random = createRandom(5)
    for (let i = 0; i < 600; i++) {
      const tokens = random.int(1, 512)
      const context = random.int(0, 200_000)
      const swapped = random.int(0, 3) * 10
      const ms = truth(tokens, context, swapped) * (0.95 + 0.1 * random.next())
      costs.observe(tokens, context, swapped, ms)
    }
    for (const [tokens, context, swapped] of [
      [1, 100, 0],
      [512, 100_000, 0],
      [64, 64_000, 20],
    ] as const) {
      const ratio = costs.predictMs(tokens, context, swapped) / truth(tokens, context, swapped)
      expect(ratio).toBeCloseTo(1, 1)
    }
  })

  it('stay finite and growing, whatever is observed', () => {
    const costs = createStepCosts({
      perStep: 1,
      perToken: 1,
      perContextToken: 1e-4,
      perSwappedBlock: 1,
    })
    const random = createRandom(6)
    for (let i = 0; i < 20_000; i++) {
      const ms = [0, Number.NaN, Number.POSITIVE_INFINITY, 1e-9, 1e9][random.int(0, 40)] ?? 5
      costs.observe(random.int(0, 5), random.int(0, 5), 0, ms)
    }
    const small = costs.predictMs(10, 100, 1)
    expect(small).toBeGreaterThan(0)
    expect(costs.predictMs(20, 200, 2)).toBeGreaterThan(small)
    expect(costs.predictMs(1e6, 1e9, 1e4)).toBeLessThan(Number.POSITIVE_INFINITY)
  })
})

describe('preemption', () => {
  const pressed = (costs: StepCosts, preemption: string, numHostBlocks = 16) => {
    const victim = createPolicy({ victim: preemption }).victim
    const driver = new Driver({
      numBlocks: 8,
      numHostBlocks,
      prefixCache: false,
      policy: { ...eager, victim },
      costs,
    })
    const sequences = [driver.add(8, 20), driver.add(8, 20)]
    driver.drain()
    return { stats: driver.scheduler.stats(), reasons: sequences[1].decisions.map((d) => d.reason) }
  }

  it('swaps where copying is cheaper, and recomputes where it is not', () => {
    const cheapCopy = { ...LINEAR, predictMs: (t: number, _: number, s: number) => t + 0.01 * s }
    const swapped = pressed(cheapCopy, 'auto')
    expect(swapped.stats.swapsIn).toBeGreaterThan(0)
    expect(swapped.stats.swapsOut).toBe(swapped.stats.preemptions)
    expect(swapped.reasons).toEqual(expect.arrayContaining(['swapped_out', 'swapped_in']))
    expect(pressed(LINEAR, 'auto').stats).toMatchObject({ swapsOut: 0 })
    expect(pressed(cheapCopy, 'recompute').stats).toMatchObject({ swapsOut: 0 })
    expect(pressed(LINEAR, 'swap').stats.swapsOut).toBeGreaterThan(0)
    expect(pressed(cheapCopy, 'swap', 0).stats).toMatchObject({ swapsOut: 0 })
  })
})

describe('pins', () => {
  const conversation = Array.from({ length: 16 }, (_, i) => i)

  it('keep a conversation in the cache for their time', () => {
    for (const [pinTtlMs, found] of [
      [0, 0],
      [1000, 16],
    ]) {
      const driver = new Driver({ numBlocks: 24 })
      driver.add(conversation, 1, { pinTtlMs })
      driver.drain()
      // Fills the pool several times.
      for (let i = 0; i < 6; i++) {
        driver.add(60, 1)
        driver.drain()
      }
      const next = driver.add([...conversation, 5, 6], 1)
      driver.drain()
      expect(next.numCachedTokens).toBe(found)
    }
  })

  it('expire, and give way when blocks run out', () => {
    const driver = new Driver({ numBlocks: 20 })
    driver.add(conversation, 1, { pinTtlMs: 500 })
    driver.drain()
    expect(driver.scheduler.stats().pinnedBlocks).toBe(4)
    driver.now += 600
    driver.plan()
    expect(driver.scheduler.stats().pinnedBlocks).toBe(0)

    driver.add(conversation, 1, { pinTtlMs: 1e9 })
    driver.drain()
    expect(driver.scheduler.stats().pinnedBlocks).toBe(4)
    const large = driver.add(76, 3)
    driver.drain()
    expect(large.numConfirmed).toBe(79)
    expect(driver.scheduler.stats().pinnedBlocks).toBe(0)
  })

  it('hold a quarter of the blocks at most, and nothing of a request that failed', () => {
    const driver = new Driver({ numBlocks: 40 })
    for (let i = 0; i < 6; i++) {
      driver.add(16, 1, { pinTtlMs: 1e9 })
      driver.drain()
    }
    expect(driver.scheduler.stats().pinnedBlocks).toBe(8)
    const other = new Driver()
    const sequence = other.add(16, 20, { pinTtlMs: 1e9 })
    other.plan()
    other.settle()
    other.scheduler.end(sequence, 'cancelled')
    expect(other.scheduler.stats().pinnedBlocks).toBe(0)
  })
})

describe('HostBlocks', () => {
  it('gives contiguous groups that never overlap, and merges them again', () => {
    const host = new HostBlocks(50)
    const random = createRandom(9)
    const groups: { start: number; count: number }[] = []
    for (let i = 0; i < 3000; i++) {
      if (random.int(0, 1) === 0) {
        const count = random.int(1, 9)
        const start = host.allocate(count)
        const taken = new Set(
          groups.flatMap((g) => Array.from({ length: g.count }, (_, b) => g.start + b)),
        )
        const fits = (at: number) =>
          at + count <= 50 &&
          Array.from({ length: count }, (_, b) => at + b).every((b) => !taken.has(b))
        if (start < 0) expect(Array.from({ length: 50 }, (_, at) => at).some(fits)).toBe(false)
        else {
          expect(fits(start)).toBe(true)
          groups.push({ start, count })
        }
      } else if (groups.length > 0) {
        const [group] = groups.splice(random.int(0, groups.length - 1), 1)
        host.release(group.start, group.count)
      }
      expect(host.numUsed).toBe(groups.reduce((sum, group) => sum + group.count, 0))
    }
    for (const group of groups) host.release(group.start, group.count)
    expect(host.allocate(50)).toBe(0)
  })
})

describe('BlockRuns', () => {
  it('joins consecutive blocks, and drops those of a group', () => {
    const runs = new BlockRuns()
    const words = () => Array.from({ length: runs.length }, (_, i) => runs.word(i))
    runs.add(Int32Array.of(7, 8, 9, 3, 4, 20), 0, 6, 100)
    expect(words()).toEqual([7, 100, 3, 3, 103, 2, 20, 105, 1])
    runs.add(Int32Array.of(0, 30, 31), 1, 3, 40)
    expect(runs.numBlocks).toBe(8)
    runs.removeHost(100, 6)
    expect(words()).toEqual([30, 40, 2])
    expect(runs.numBlocks).toBe(2)
  })
})
