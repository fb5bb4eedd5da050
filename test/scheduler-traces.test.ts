/**
 * What the scheduler promises, on random traces of arrivals, stops and cancels, for every combination
 * of policies; and that the recorded events of each trace replay to the same plans.
 */

import { describe, expect, it } from 'vitest'
import type { EngineError } from '../lib/errors.ts'
import type { SchedulerConfig, SchedulerStats } from '../lib/scheduler/config.ts'
import { createEventRecorder, logConfig, type SchedulerEvent } from '../lib/scheduler/event-log.ts'
import type { StepPlan } from '../lib/scheduler/plan.ts'
import { ADMISSIONS, BUDGETS, ORDERS, VICTIMS } from '../lib/scheduler/policies/index.ts'
import { replayEvents } from '../lib/scheduler/replay.ts'
import { createForkGroup, donorOf, type Sequence } from '../lib/scheduler/sequence.ts'
import { createRandom, type Random } from './support/random.ts'
import { BLOCK, Driver, eager, hashWords } from './support/schedule-driver.ts'

/** Of the driver's clock, which counts plans. */
const STARVATION_MS = 30
const NUM_TRACES = 1080

function requireAll(problems: readonly string[]): void {
  if (problems.length > 0) expect(problems).toEqual([])
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
  requireAll(problems)
}

/**
 * The contents of KV blocks as the steps of a driver leave them: the position and sequence that wrote
 * each slot. Swaps are done as a backend does them; what a step attends to must be what was written.
 */
class KvModel {
  readonly #device: string[]
  readonly #host: string[]

  constructor(config: SchedulerConfig) {
    this.#device = new Array(config.numBlocks * BLOCK).fill('')
    this.#host = new Array((config.numHostBlocks ?? 0) * BLOCK).fill('')
  }

  run(plan: StepPlan): void {
    for (const [runs, isOut] of [
      [plan.swapOuts, true],
      [plan.swapIns, false],
    ] as const)
      for (let at = 0; at < runs.length; at += 3)
        for (let i = 0; i < runs.word(at + 2) * BLOCK; i++) {
          const device = runs.word(at) * BLOCK + i
          const host = runs.word(at + 1) * BLOCK + i
          if (isOut) this.#host[host] = this.#device[device]
          else this.#device[device] = this.#host[host]
        }
    const problems = this.#copy(plan)
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      const end = plan.starts[i] + plan.counts[i]
      for (let position = 0; position < end; position++) {
        const slot = sequence.blocks[Math.floor(position / BLOCK)] * BLOCK + (position % BLOCK)
        // Tokens of a step in flight are known by who will sample them.
        const known = position < sequence.numConfirmed
        const content = `${position}:${known ? sequence.tokens[position] : `of ${sequence.id}`}`
        if (position >= plan.starts[i]) this.#device[slot] = content
        else if (known && this.#device[slot] !== content && !this.#isOwn(slot, position, sequence))
          problems.push(`${sequence.id} finds ${this.#device[slot]}, not ${content}`)
      }
    }
    requireAll(problems)
  }

  /** No order among the copies is promised: a destination stands once and is no source. */
  #copy({ copies, numCopies }: StepPlan): string[] {
    const pairs = copies.subarray(0, 2 * numCopies)
    const sources = pairs.filter((_, at) => at % 2 === 0)
    const destinations = new Set(pairs.filter((_, at) => at % 2 === 1))
    for (let at = 0; at < pairs.length; at += 2)
      for (let i = 0; i < BLOCK; i++)
        this.#device[pairs[at + 1] * BLOCK + i] = this.#device[pairs[at] * BLOCK + i]
    const isPlain =
      destinations.size === numCopies && sources.every((source) => !destinations.has(source))
    return isPlain ? [] : [`copies ${pairs}`]
  }

  /** Written before its token was known. */
  #isOwn(slot: number, position: number, sequence: Sequence): boolean {
    return this.#device[slot] === `${position}:of ${sequence.id}`
  }
}

/** Who holds what adds up, on the device and on the host. */
function checkPool(driver: Driver, all: ReadonlySet<Sequence>): void {
  const { blocks, config } = driver.scheduler
  const { pinnedBlocks, hostBlocksUsed } = driver.scheduler.stats()
  const holders = new Int32Array(config.numBlocks)
  const slots = new Set<number>()
  let withSlot = 0
  let swapped = 0
  for (const sequence of all) {
    for (let i = 0; i < sequence.numBlocks; i++) holders[sequence.blocks[i]]++
    swapped += sequence.hostCount
    if (sequence.slot < 0) continue
    withSlot++
    slots.add(sequence.slot)
  }
  let pinned = 0
  const problems: string[] = []
  for (let block = 0; block < config.numBlocks; block++) {
    const beyond = blocks.refCount(block) - holders[block]
    if (beyond < 0) problems.push(`block ${block} has more holders than references`)
    pinned += beyond
  }
  if (slots.size !== withSlot) problems.push('a slot is held twice')
  if (pinned !== pinnedBlocks) problems.push(`${pinned} pinned, ${pinnedBlocks} counted`)
  if (blocks.numFree + blocks.numCached + blocks.numUsed !== config.numBlocks)
    problems.push('free + cached + used')
  if (swapped !== hostBlocksUsed || swapped > (config.numHostBlocks ?? 0))
    problems.push(`${swapped} swapped, ${hostBlocksUsed} counted`)
  requireAll(problems)
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

/** Trace `seed` has combination `seed` of the policies: all of them come up in turn. */
function policyOf(seed: number) {
  const pick = <T>(list: readonly T[], at: number): T => list[at % list.length]
  const policy = {
    order: pick(ORDERS, seed),
    budget: pick(BUDGETS, Math.floor(seed / 6)),
    victim: pick(VICTIMS, Math.floor(seed / 18)),
    admission: pick([...ADMISSIONS, eager.admission], Math.floor(seed / 54)),
  }
  return policy
}

interface TraceResult {
  readonly driver: Driver
  readonly events: SchedulerEvent[]
  readonly stats: SchedulerStats
  readonly sequences: ReadonlySet<Sequence>
}

function runTrace(seed: number, steps: number): TraceResult {
  const random = createRandom(seed)
  const depth = random.int(1, 3)
  const events: SchedulerEvent[] = []
  const config = {
    numBlocks: random.int(30, 60),
    numHostBlocks: random.int(0, 2) * 20,
    maxNumSeqs: 6,
    numSlots: 12,
    maxNumBatchedTokens: random.int(12, 48),
    maxRows: random.int(6, 12),
    prefixCache: random.int(0, 3) > 0,
    maxWaiting: 20,
    starvationMs: STARVATION_MS,
    policy: policyOf(seed),
    observer: createEventRecorder(hashWords, (event) => events.push(event)),
  }
  const driver = new Driver(config)
  events.push(logConfig(driver.scheduler.config))
  const kv = new KvModel(driver.scheduler.config)
  const all = new Set<Sequence>()
  const ended = new Set<Sequence>()
  const finish = (sequences: readonly Sequence[]) => {
    for (const sequence of sequences) {
      if (ended.has(sequence)) expect(`${sequence.id} ended twice`).toBe('')
      ended.add(sequence)
    }
  }
  const plan = () => {
    const now = driver.now
    // A fork waits for its prompt whatever the time, as those do that it is computed with.
    const waited = [...all].filter(
      (sequence) =>
        sequence.state === 'waiting' &&
        (sequence.waitIndex >= 0 || donorOf(sequence) !== undefined),
    )
    const planned = driver.plan()
    if (planned !== undefined) {
      checkPlan(driver, planned)
      kv.run(planned)
    }
    const youngest = Math.max(
      -1,
      ...waited.filter(({ state }) => state === 'running').map(({ id }) => id),
    )
    const overtaken = waited.find(
      ({ state, id, arrivalMs }) =>
        state === 'waiting' && id < youngest && now - arrivalMs >= STARVATION_MS,
    )
    if (overtaken !== undefined) expect(`${overtaken.id} overtaken by ${youngest}`).toBe('')
    return planned
  }
  const stops = () => random.int(0, 15) === 0
  /** Masks become known some time after their token, as from another thread. */
  const resume = (share: number) => {
    for (const sequence of all)
      if (sequence.isHeld && sequence.numConfirmed === sequence.numTokens && random.next() < share)
        driver.scheduler.resume(sequence)
  }
  const settle = () => {
    const { numTokens } = driver.inFlight[0]
    finish(driver.settle(stops, random.int(0, 4) === 0 ? 0 : 0.2 + 0.1 * numTokens))
  }
  for (let step = 0; step < steps; step++) {
    for (let arrivals = random.int(0, 2); arrivals > 0; arrivals--) {
      for (const sequence of addRandom(driver, random)) all.add(sequence)
    }
    if (random.int(0, 3) === 0) {
      const alive = [...all].filter((sequence) => !ended.has(sequence))
      if (alive.length > 0) {
        const victim = alive[random.int(0, alive.length - 1)]
        driver.scheduler.end(victim, random.int(0, 1) === 0 ? 'cancelled' : 'deadline')
        finish([victim])
        // A second end is not an event.
        driver.scheduler.end(victim, 'finished')
      }
    }
    // Now and then a request turns out to call a tool, or has ended by then.
    if (step % 7 === 3 && all.size > 0) driver.scheduler.pin([...all][step % all.size], step % 30)
    resume(0.4)
    if (driver.inFlight.length < depth) plan()
    if (driver.inFlight.length === depth || (driver.inFlight.length > 0 && random.int(0, 1) === 0))
      settle()
    if (step % 4 === 0) checkPool(driver, all)
  }
  // Whatever is left ends within a bounded number of steps.
  for (let step = 0; driver.scheduler.numUnfinished > 0; step++) {
    if (step === 4000) expect(driver.scheduler.numUnfinished).toBe(0)
    resume(0.7)
    const planned = driver.inFlight.length < depth ? plan() : undefined
    if (planned === undefined && driver.inFlight.length > 0) settle()
    else if (planned === undefined && !driver.scheduler.hasHeld)
      expect(driver.scheduler.numUnfinished).toBe(0)
  }
  while (driver.inFlight.length > 0) settle()
  checkPool(driver, all)
  checkEnd(driver, all, ended)
  return { driver, events, stats: driver.scheduler.stats(), sequences: all }
}

/** One sequence, or several outputs of a prompt; fewer where the queue is full. */
function addRandom(driver: Driver, random: Random): Sequence[] {
  const kinds = ['generate', 'generate', 'generate', 'score', 'forward'] as const
  const kind = kinds[random.int(0, 4)]
  const prompt = randomPrompt(random)
  if (kind === 'score' && prompt.length === 1) return []
  const numForks = kind === 'generate' && random.int(0, 3) === 0 ? random.int(2, 5) : 0
  const added: Sequence[] = []
  try {
    const group = numForks > 0 ? createForkGroup(numForks) : undefined
    const options = {
      kind,
      ...(group !== undefined && { group }),
      priority: random.int(0, 2),
      ...(random.int(0, 2) > 0 && { program: `program ${random.int(0, 3)}` }),
      ...(random.int(0, 2) === 0 && { tpotTargetMs: random.int(1, 4) }),
      isConstrained: kind === 'generate' && random.int(0, 4) === 0,
      pinTtlMs: random.int(0, 3) === 0 ? random.int(1, 40) : 0,
      salt: random.int(0, 5) === 0 ? 'other' : '',
    }
    do added.push(driver.add(prompt, random.int(1, 40), options))
    while (added.length < numForks)
  } catch (error) {
    expect(['ERR_QUEUE_FULL', 'ERR_KV_EXHAUSTED']).toContain((error as EngineError).code)
  }
  return added
}

function checkEnd(driver: Driver, all: ReadonlySet<Sequence>, ended: ReadonlySet<Sequence>): void {
  const { scheduler } = driver
  const stats = scheduler.stats()
  const problems: string[] = []
  if (stats.hostBlocksUsed !== 0) problems.push('host blocks left')
  if (scheduler.blocks.numUsed > stats.pinnedBlocks) problems.push('blocks left')
  if (scheduler.numFreeSlots !== scheduler.config.numSlots) problems.push('slots left')
  if (ended.size !== all.size) problems.push('a sequence never ended')
  for (const sequence of all) {
    if (sequence.state !== 'ended') problems.push(`${sequence.id} is ${sequence.state}`)
    const output = sequence.tokens.subarray(sequence.promptLen, sequence.numConfirmed)
    if (!output.every((token, i) => token === 7 * sequence.id + sequence.promptLen + i))
      problems.push(`${sequence.id} has tokens of another`)
  }
  requireAll(problems)
  // Pins end with their time, if nothing else ended them.
  driver.now += 1000
  expect(driver.plan()).toBeUndefined()
  expect(scheduler.blocks.numUsed).toBe(0)
}

describe('Scheduler on random traces', () => {
  const PARTS = 9
  const totals = { preemptions: 0, droppedTokens: 0, prefixHits: 0, swapsOut: 0, swapsIn: 0 }
  /** How often each reason was given. */
  const reasons = new Map<string, number>()

  it.each(Array.from({ length: PARTS }, (_, part) => part))(
    'keeps its promises and replays, part %i',
    { timeout: 120_000 },
    (part) => {
      for (let seed = part; seed < NUM_TRACES; seed += PARTS) {
        const { events, stats, sequences } = runTrace(seed, 60)
        for (const name of Object.keys(totals) as (keyof typeof totals)[])
          totals[name] += stats[name]
        for (const { decisions } of sequences)
          for (const { reason, count } of decisions)
            reasons.set(reason, (reasons.get(reason) ?? 0) + count)
        const replay = replayEvents(JSON.parse(JSON.stringify(events)), {
          hash: hashWords,
          policy: policyOf(seed),
        })
        expect(replay.firstDifference, `trace ${seed}`).toBe(-1)
        expect(replay.numEvents).toBe(events.length)
      }
    },
  )

  it('reaches the interesting states in those traces', () => {
    expect(Math.min(...Object.values(totals))).toBeGreaterThan(500)
    const rare = ['pinned', 'admitted_overdue', 'stalled_blocks', 'deferred_budget', 'deadline']
    rare.push('forked', 'wait_fork')
    expect(rare.filter((reason) => (reasons.get(reason) ?? 0) < 100)).toEqual([])
  })

  it('notices a log that differs in one token or one call', () => {
    const seed = 7
    const { events } = runTrace(seed, 60)
    const options = { hash: hashWords, policy: policyOf(seed) }
    const adds = events.flatMap((event, index) => (event.type === 'add' ? [index] : []))
    const noticed = adds.filter((at) => {
      const changed = events.map((event, index) =>
        index === at && event.type === 'add' ? { ...event, prompt: [...event.prompt, 1] } : event,
      )
      return replayEvents(changed, options).firstDifference > at
    })
    // Some requests are cancelled before a step names them.
    expect(noticed.length).toBeGreaterThan(adds.length / 2)
    const hashes = (list: readonly SchedulerEvent[]) => replayEvents(list, options).hashes
    expect(hashes(events)).toEqual(hashes(events))
    expect(new Set(hashes(events)).size).toBe(hashes(events).length)
    expect(() => replayEvents(events.slice(1), options)).toThrow()
  })
})
