/** What the scheduler promises, on random traces of arrivals, stops and cancels. */

import { describe, expect, it } from 'vitest'
import type { EngineError } from '../lib/errors.ts'
import type { StepPlan } from '../lib/scheduler/plan.ts'
import { createPolicy } from '../lib/scheduler/policies/index.ts'
import type { Sequence } from '../lib/scheduler/sequence.ts'
import { createRandom, type Random } from './support/random.ts'
import { BLOCK, Driver, eager } from './support/schedule-driver.ts'

interface Trace {
  readonly driver: Driver
  readonly all: Set<Sequence>
  readonly ended: Set<Sequence>
}

function checkPlan(driver: Driver, plan: StepPlan): void {
  const { maxNumBatchedTokens, maxRows, maxNumSeqs, maxPartialPrefills } = driver.scheduler.config
  let tokens = 0
  let rows = 0
  let partial = 0
  const named = new Set<Sequence>()
  const problems: string[] = []
  for (let i = 0; i < plan.numSeqs; i++) {
    const sequence = plan.seqs[i]
    if (named.has(sequence)) problems.push(`${sequence.id} named twice`)
    named.add(sequence)
    tokens += plan.counts[i]
    rows += plan.rowCounts[i]
    const end = plan.starts[i] + plan.counts[i]
    if (plan.counts[i] <= 0) problems.push('empty chunk')
    if (end > sequence.numBlocks * BLOCK) problems.push(`${sequence.id} beyond its blocks`)
    if (end > sequence.maxLen) problems.push(`${sequence.id} beyond its length`)
    if (sequence.numComputed !== end) problems.push('numComputed is not what was planned')
    if (plan.rowCounts[i] === 0) partial++
    if (plan.samples[i] === 1 && sequence.slot < 0) problems.push('sampling without a slot')
  }
  if (tokens !== plan.numTokens || tokens > maxNumBatchedTokens) problems.push(`tokens ${tokens}`)
  if (rows !== plan.numRows || rows > maxRows) problems.push(`rows ${rows}`)
  if (plan.numSeqs > maxNumSeqs) problems.push('too many sequences')
  if (partial > (maxPartialPrefills ?? 4) + 1) problems.push(`${partial} partial prompts`)
  expect(problems).toEqual([])
}

/** Refcounts equal the number of holders; free + cached + used = total; slots are distinct. */
function checkPool({ driver, all }: Trace): void {
  const { blocks, config } = driver.scheduler
  const holders = new Int32Array(config.numBlocks)
  const slots = new Set<number>()
  let withSlot = 0
  for (const sequence of all) {
    for (let i = 0; i < sequence.numBlocks; i++) holders[sequence.blocks[i]]++
    if (sequence.slot >= 0) {
      withSlot++
      slots.add(sequence.slot)
    }
  }
  expect(slots.size).toBe(withSlot)
  expect(holders.every((count, block) => count === blocks.refCount(block))).toBe(true)
  expect(blocks.numFree + blocks.numCached + blocks.numUsed).toBe(config.numBlocks)
  expect(blocks.numUsed).toBe(holders.reduce((used, count) => used + (count > 0 ? 1 : 0), 0))
}

function randomPrompt(random: Random): number[] {
  // Few distinct beginnings, so that prefixes are shared.
  const family = random.int(0, 2)
  const shared = random.int(0, 40)
  const own = random.int(1, 30)
  return [
    ...Array.from({ length: shared }, (_, i) => 100 * family + i),
    ...Array.from({ length: own }, () => random.int(0, 5)),
  ]
}

function runTrace(seed: number, steps: number): Driver {
  const random = createRandom(seed)
  const depth = random.int(1, 3)
  const driver = new Driver({
    numBlocks: random.int(30, 90),
    maxNumSeqs: 6,
    numSlots: 12,
    maxNumBatchedTokens: random.int(12, 48),
    maxRows: random.int(6, 12),
    prefixCache: random.int(0, 3) > 0,
    maxWaiting: 20,
    policy: random.int(0, 1) === 0 ? eager : createPolicy(),
  })
  const trace: Trace = { driver, all: new Set(), ended: new Set() }
  const finish = (sequences: Sequence[]) => {
    for (const sequence of sequences) {
      expect(trace.ended.has(sequence)).toBe(false)
      trace.ended.add(sequence)
    }
  }
  const stops = () => random.int(0, 15) === 0
  for (let step = 0; step < steps; step++) {
    for (let arrivals = random.int(0, 2); arrivals > 0; arrivals--) {
      const kind = (['generate', 'generate', 'generate', 'score', 'forward'] as const)[
        random.int(0, 4)
      ]
      const prompt = randomPrompt(random)
      if (kind === 'score' && prompt.length === 1) continue
      try {
        trace.all.add(driver.add(prompt, random.int(1, 40), { kind, priority: random.int(0, 2) }))
      } catch (error) {
        expect(['ERR_QUEUE_FULL', 'ERR_KV_EXHAUSTED']).toContain((error as EngineError).code)
      }
    }
    if (random.int(0, 3) === 0) {
      const alive = [...trace.all].filter((sequence) => !trace.ended.has(sequence))
      if (alive.length > 0) {
        const victim = alive[random.int(0, alive.length - 1)]
        driver.scheduler.end(victim, 'cancelled')
        finish([victim])
        // A second end is not an event.
        driver.scheduler.end(victim, 'finished')
      }
    }
    if (driver.inFlight.length < depth) {
      const plan = driver.plan()
      if (plan !== undefined) checkPlan(driver, plan)
    }
    if (driver.inFlight.length === depth || (driver.inFlight.length > 0 && random.int(0, 1) === 0))
      finish(driver.settle(stops))
    if (step % 8 === 0) checkPool(trace)
  }
  // No starvation: whatever is left ends within a bounded number of steps.
  for (let step = 0; driver.scheduler.numUnfinished > 0; step++) {
    expect(step).toBeLessThan(4000)
    const plan = driver.inFlight.length < depth ? driver.plan() : undefined
    if (plan !== undefined) checkPlan(driver, plan)
    else finish(driver.settle(stops))
  }
  while (driver.inFlight.length > 0) finish(driver.settle(stops))
  checkPool(trace)
  expect(driver.scheduler.blocks.numUsed).toBe(0)
  expect(driver.scheduler.numFreeSlots).toBe(driver.scheduler.config.numSlots)
  expect(trace.ended.size).toBe(trace.all.size)
  for (const sequence of trace.all) {
    expect(sequence.state).toBe('ended')
    const output = sequence.tokens.subarray(sequence.promptLen, sequence.numConfirmed)
    expect(output.every((token, i) => token === 7 * sequence.id + sequence.promptLen + i)).toBe(
      true,
    )
  }
  return driver
}

describe('Scheduler on random traces', () => {
  it('keeps its promises', () => {
    let preemptions = 0
    let dropped = 0
    let hits = 0
    for (let seed = 1; seed <= 60; seed++) {
      const stats = runTrace(seed, 250).scheduler.stats()
      preemptions += stats.preemptions
      dropped += stats.droppedTokens
      hits += stats.prefixHits
    }
    // The traces reach the interesting states.
    expect(Math.min(preemptions, dropped, hits)).toBeGreaterThan(100)
  })

  it('gives the same plans for the same events', () => {
    expect(runTrace(123, 200).log).toEqual(runTrace(123, 200).log)
  })

  it('does not grow over many steps', () => {
    const driver = new Driver()
    let ended = 0
    for (let step = 0; step < 20_000; step++) {
      if (driver.scheduler.stats().waiting < 4) driver.add(randomPrompt(createRandom(step)), 10)
      if (driver.plan() === undefined || driver.inFlight.length === 2)
        ended += driver.settle().length
      driver.log.length = 0
    }
    expect(ended).toBeGreaterThan(1000)
    driver.drain()
  })
})
