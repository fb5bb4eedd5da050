import { describe, expect, it } from 'vitest'
import { EngineError } from '../lib/errors.ts'
import type { StepPlan } from '../lib/scheduler/plan.ts'
import { POLICIES } from '../lib/scheduler/policies/index.ts'
import type { SchedulingPolicy } from '../lib/scheduler/policy.ts'
import { Scheduler, type SchedulerConfig } from '../lib/scheduler/scheduler.ts'
import { createSequence, type Sequence, type SequenceKind } from '../lib/scheduler/sequence.ts'
import { createRandom, type Random } from './support/random.ts'

const BLOCK = 4

/** Admits whatever fits at the moment, so that blocks do run out. */
const eager: SchedulingPolicy = {
  ...POLICIES.fcfs,
  name: 'eager',
  admission: (view) => (view.neededBlocks <= view.availableBlocks ? 'admit' : 'wait_blocks'),
}

function config(overrides: Partial<SchedulerConfig> = {}): SchedulerConfig {
  return {
    maxNumSeqs: 8,
    maxNumBatchedTokens: 32,
    maxRows: 16,
    maxModelLen: 256,
    numBlocks: 64,
    blockSize: BLOCK,
    numSlots: 16,
    maxWaiting: 64,
    prefixCache: true,
    policy: POLICIES.fcfs,
    cacheKey: Int32Array.of(1, 2, 3, 4),
    minChunk: 8,
    ...overrides,
  }
}

/** Runs a scheduler against an executor that "samples" ids made from sequence and position. */
class Driver {
  readonly scheduler: Scheduler
  readonly inFlight: StepPlan[] = []
  /** One line per step: which tokens of which sequences. */
  readonly log: string[] = []
  now = 0
  #nextId = 0

  constructor(overrides: Partial<SchedulerConfig> = {}) {
    this.scheduler = new Scheduler(config(overrides))
  }

  add(
    prompt: number | number[],
    maxTokens: number,
    options: { kind?: SequenceKind; priority?: number; readsCache?: boolean } = {},
  ): Sequence {
    const id = this.#nextId++
    const kind = options.kind ?? 'generate'
    const sequence = createSequence({
      id,
      kind,
      prompt:
        typeof prompt === 'number'
          ? Array.from({ length: prompt }, (_, i) => 1000 * id + i)
          : prompt,
      maxTokens: kind === 'generate' ? maxTokens : 0,
      priority: options.priority ?? 0,
      arrivalMs: this.now,
      cacheRoot: this.scheduler.prefixCache.root('model', ''),
      readsCache: options.readsCache ?? kind === 'generate',
    })
    this.scheduler.add(sequence)
    return sequence
  }

  plan(): StepPlan | undefined {
    const plan = this.scheduler.plan(this.now++)
    if (plan === undefined) return undefined
    this.inFlight.push(plan)
    let line = ''
    for (let i = 0; i < plan.numSeqs; i++)
      line += ` ${plan.seqs[i].id}:${plan.starts[i]}+${plan.counts[i]}`
    this.log.push(line.trim())
    return plan
  }

  /** Settles the oldest step; ends sequences at their length, or where `stops` says so. */
  settle(stops: (sequence: Sequence) => boolean = () => false): Sequence[] {
    const plan = this.inFlight.shift() as StepPlan
    const sampled = new Int32Array(plan.numRows).fill(-1)
    for (let i = 0; i < plan.numSeqs; i++)
      if (plan.samples[i] === 1)
        sampled[plan.firstRows[i]] = 7 * plan.seqs[i].id + plan.starts[i] + plan.counts[i]
    this.scheduler.settle(plan, sampled)
    const ended: Sequence[] = []
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      if (sequence.state === 'ending' || sequence.state === 'ended') continue
      const done =
        sequence.kind === 'generate'
          ? plan.accepted[i] === 1 && (sequence.numConfirmed === sequence.maxLen || stops(sequence))
          : sequence.numSettled === sequence.promptLen - (sequence.kind === 'score' ? 1 : 0)
      if (!done) continue
      ended.push(sequence)
      this.scheduler.end(sequence, 'finished')
    }
    this.scheduler.release(plan)
    return ended
  }

  /** Runs until nothing is left; the number of steps is bounded. */
  drain(depth = 2, limit = 10_000): void {
    for (let i = 0; i < limit; i++) {
      while (this.inFlight.length < depth && this.plan() !== undefined);
      if (this.inFlight.length === 0) break
      this.settle()
    }
    expect(this.scheduler.numUnfinished).toBe(0)
    expect(this.scheduler.blocks.numUsed).toBe(0)
  }
}

const code = (run: () => unknown): string => {
  try {
    run()
  } catch (error) {
    if (error instanceof EngineError) return error.code
    throw error
  }
  return 'none'
}

describe('Scheduler', () => {
  it('prefills, then decodes one token a step, and never computes the last token', () => {
    const driver = new Driver()
    const sequence = driver.add(5, 3)
    driver.drain(1)
    expect(driver.log).toEqual(['0:0+5', '0:5+1', '0:6+1'])
    expect(sequence.numConfirmed).toBe(8)
    expect(sequence.numComputed).toBe(7)
  })

  it('plans a step ahead with tokens nobody has seen, none beyond the length limit', () => {
    const driver = new Driver()
    driver.add(5, 3)
    driver.plan()
    driver.plan()
    driver.plan()
    expect(driver.plan()).toBeUndefined()
    expect(driver.log).toEqual(['0:0+5', '0:5+1', '0:6+1'])
    driver.drain()
  })

  it('drops the token sampled after a stop noticed a step late', () => {
    const driver = new Driver()
    const sequence = driver.add(5, 50)
    driver.plan()
    driver.plan()
    expect(driver.settle(() => true)).toEqual([sequence])
    expect(sequence.state).toBe('ending')
    expect(driver.scheduler.blocks.numUsed).toBeGreaterThan(0)
    driver.settle()
    expect(sequence.state).toBe('ended')
    expect(sequence.numConfirmed).toBe(6)
    expect(driver.scheduler.stats().droppedTokens).toBe(1)
    expect(driver.scheduler.blocks.numUsed).toBe(0)
  })

  it('cuts a long prompt into chunks while others decode, decodes first', () => {
    const driver = new Driver()
    driver.add(4, 8)
    driver.plan()
    driver.settle()
    driver.add(70, 1)
    driver.drain(1)
    expect(driver.log.slice(1, 4)).toEqual(['0:4+1 1:0+31', '0:5+1 1:31+31', '0:6+1 1:62+8'])
  })

  it('shares a step between a long prompt and one that comes later', () => {
    const driver = new Driver()
    driver.add(100, 1)
    driver.plan()
    driver.add(10, 1)
    driver.plan()
    expect(driver.log).toEqual(['0:0+32', '0:32+22 1:0+10'])
    driver.drain()
  })

  it('admits any number of prompts that a step completes, and a bounded number of others', () => {
    const driver = new Driver()
    for (let i = 0; i < 8; i++) driver.add(4, 1)
    expect(driver.plan()?.numSeqs).toBe(8)
    driver.drain()

    const busy = new Driver({ maxNumBatchedTokens: 64, maxPartialPrefills: 2 })
    for (let i = 0; i < 4; i++) busy.add(60, 1)
    expect(busy.plan()?.numSeqs).toBe(2)
    busy.drain()
  })

  it('refuses what can never run, at once', () => {
    const driver = new Driver({ numBlocks: 8, maxNumSeqs: 1, maxWaiting: 1 })
    expect(code(() => driver.add(200, 57))).toBe('ERR_CONTEXT_LENGTH')
    expect(code(() => driver.add(20, 14))).toBe('ERR_KV_EXHAUSTED')
    expect(code(() => driver.add(20, 13))).toBe('none')
    expect(code(() => driver.add(4, 1))).toBe('none')
    expect(code(() => driver.add(4, 1))).toBe('ERR_QUEUE_FULL')
    driver.drain()
  })

  it('refuses a configuration in which decodes may not fit a step', () => {
    expect(code(() => new Driver({ maxNumBatchedTokens: 7 }))).toBe('ERR_USAGE')
    expect(code(() => new Driver({ maxRows: 7 }))).toBe('ERR_USAGE')
  })

  it('starts with cached blocks and leaves at least one token to compute', () => {
    const driver = new Driver()
    const prompt = Array.from({ length: 12 }, (_, i) => i)
    driver.add(prompt, 1)
    driver.drain()
    const again = driver.add(prompt, 1)
    driver.drain()
    expect(again.numCachedTokens).toBe(8)
    expect(driver.log).toEqual(['0:0+12', '1:8+4'])
    const longer = driver.add([...prompt, 12], 1)
    driver.drain()
    expect(longer.numCachedTokens).toBe(12)
    const apart = driver.add(prompt, 1, { readsCache: false })
    driver.drain()
    expect(apart.numCachedTokens).toBe(0)
    expect(driver.scheduler.stats()).toMatchObject({ prefixQueries: 37, prefixHits: 20 })
  })

  it('reuses generated tokens, but never one that was dropped', () => {
    const driver = new Driver()
    const first = driver.add([1, 2, 3, 4, 5, 6], 50)
    driver.plan()
    driver.plan()
    driver.plan()
    driver.settle()
    driver.settle(() => true)
    driver.settle()
    // 8 tokens are confirmed and 8 computed: the last one by a step that was dropped.
    expect(first.numConfirmed).toBe(8)
    const output = [...first.tokens.subarray(0, 8)]
    const next = driver.add([...output, 99], 1)
    driver.drain()
    expect(next.numCachedTokens).toBe(8)
  })

  it('never reuses a token that was dropped by a cancel', () => {
    const driver = new Driver()
    const sequence = driver.add(7, 50)
    driver.plan()
    // Computes position 7, the end of a block, from a token nobody will ever see.
    driver.plan()
    driver.scheduler.end(sequence, 'cancelled')
    driver.settle()
    driver.settle()
    expect(driver.scheduler.blocks.numCached).toBe(1)
    expect(driver.scheduler.stats().droppedTokens).toBe(2)
  })

  it('finds what it computed before a preemption, and lets others find it', () => {
    const driver = new Driver({ numBlocks: 8, policy: eager })
    const sequences = [driver.add(8, 20), driver.add(8, 20)]
    driver.drain()
    const [, preempted] = sequences
    expect(preempted.numPreemptions).toBeGreaterThan(0)
    const reasons = preempted.decisions.map((decision) => decision.reason)
    expect(reasons.slice(reasons.indexOf('resumed')).slice(0, 2)).toEqual(['resumed', 'prefix_hit'])
    const again = driver.add([...preempted.tokens.subarray(0, 20), 5], 1)
    driver.drain()
    expect(again.numCachedTokens).toBe(20)
  })

  it('bounds the rows of scored prompts', () => {
    const driver = new Driver({ maxRows: 8, maxNumSeqs: 8 })
    driver.add(20, 0, { kind: 'forward' })
    driver.add(6, 0, { kind: 'score' })
    const text = driver.add(5, 1)
    let steps = 0
    while (driver.inFlight.length > 0 || driver.scheduler.numUnfinished > 0) {
      const plan = driver.plan()
      if (plan !== undefined) expect(plan.numRows).toBeLessThanOrEqual(8)
      driver.settle()
      expect(++steps).toBeLessThan(50)
    }
    expect(text.numConfirmed).toBe(6)
    expect(driver.log.join(' ')).toContain('1:0+')
    expect(driver.log.join(' ')).not.toContain('1:5+1')
  })

  it('preempts the newest when blocks run out, and resumes it with all its tokens', () => {
    const driver = new Driver({ numBlocks: 8, prefixCache: false, policy: eager })
    const sequences = [driver.add(8, 20), driver.add(8, 20)]
    driver.drain()
    expect(driver.scheduler.stats().preemptions).toBeGreaterThan(0)
    expect(sequences[0].numPreemptions).toBe(0)
    expect(sequences[1].numPreemptions).toBeGreaterThan(0)
    for (const sequence of sequences) {
      const output = [...sequence.tokens.subarray(8, 28)]
      expect(output).toEqual(Array.from({ length: 20 }, (_, i) => 7 * sequence.id + 8 + i))
    }
    expect(sequences[1].decisions.map((decision) => decision.reason)).toEqual(
      expect.arrayContaining(['queued', 'admitted', 'prefill', 'decode', 'preempted', 'resumed']),
    )
  })

  it('preempts a lower priority first', () => {
    const driver = new Driver({ numBlocks: 8, prefixCache: false, policy: eager })
    const low = driver.add(8, 20, { priority: -1 })
    const high = driver.add(8, 20)
    driver.drain()
    expect(low.numPreemptions).toBeGreaterThan(0)
    expect(high.numPreemptions).toBe(0)
  })

  it('says why a request waits', () => {
    const driver = new Driver({ numBlocks: 8 })
    const first = driver.add(20, 4)
    const second = driver.add(20, 4)
    driver.plan()
    expect(first.decisions.map((decision) => decision.reason)).toEqual([
      'queued',
      'admitted',
      'prefill',
    ])
    expect(second.decisions.at(-1)?.reason).toBe('wait_blocks')
    expect(driver.scheduler.queuePosition(second)).toBe(0)
    expect(driver.scheduler.queuePosition(first)).toBe(-1)
    driver.drain()
  })

  it('holds back a prompt that fits now but not when the others have grown', () => {
    const driver = new Driver({ numBlocks: 32 })
    driver.add(16, 100)
    driver.plan()
    const second = driver.add(16, 100)
    driver.plan()
    expect(second.decisions.at(-1)?.reason).toBe('wait_projected_peak')
    driver.drain()
  })
})

// ---- properties on random traces ----

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
    policy: random.int(0, 1) === 0 ? eager : POLICIES.fcfs,
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
