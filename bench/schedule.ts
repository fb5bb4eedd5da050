/**
 * What planning a step costs: 512 sequences run and 2,000 wait, those that end are replaced, so that
 * steps decode, prefill and admit as a busy server's do. For every order and every budget:
 *
 *   npx tsx bench/schedule.ts [--steps 3000] [--growth 100000] [--json bench/results/schedule.json]
 *
 * `--growth` then counts live heap bytes over so many steps (needs NODE_OPTIONS=--expose-gc). One
 * thread; nothing is submitted anywhere.
 */

import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { describeMachine } from '../lib/bench/machine.ts'
import { quantile } from '../lib/bench/stats.ts'
import { createSlotUpdates, StepEncoder } from '../lib/engine/step.ts'
import { evenParts } from '../lib/engine/step-programs.ts'
import { EngineError } from '../lib/errors.ts'
import type { StepPlan } from '../lib/scheduler/plan.ts'
import { BUDGETS, createPolicy, ORDERS, type PolicyNames } from '../lib/scheduler/policies/index.ts'
import { Scheduler } from '../lib/scheduler/scheduler.ts'
import { createSequence } from '../lib/scheduler/sequence.ts'

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '3000' },
    growth: { type: 'string', default: '0' },
    json: { type: 'string' },
  },
})

const RUNNING = 512
const WAITING = 2000
const BLOCK_SIZE = 16
const MAX_LEN = 1024

/** Uniform whole numbers, the same in every run (mulberry32). */
function createIntegers(seed: number): (low: number, high: number) => number {
  let state = seed
  return (low, high) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return low + (((mixed ^ (mixed >>> 14)) >>> 0) % (high - low + 1))
  }
}

const ONE_PART = evenParts(1)

/** A scheduler kept full. */
class Load {
  readonly scheduler: Scheduler
  readonly #integer = createIntegers(1)
  readonly #root: Int32Array
  readonly #sampled = new Int32Array(RUNNING).fill(7)
  readonly #encoder = new StepEncoder({ blockSize: BLOCK_SIZE, numBuffers: 3 })
  readonly #updates = createSlotUpdates()
  #nextId = 0
  #nowMs = 0
  readonly #numWaiting: number

  constructor(names: PolicyNames, numWaiting: number) {
    this.#numWaiting = numWaiting
    this.scheduler = new Scheduler({
      maxNumSeqs: RUNNING,
      maxNumBatchedTokens: 2048,
      maxRows: RUNNING,
      maxModelLen: MAX_LEN,
      // Enough for all, so that 512 do run.
      numBlocks: (RUNNING + 64) * (MAX_LEN / BLOCK_SIZE),
      blockSize: BLOCK_SIZE,
      numSlots: 2 * RUNNING,
      maxWaiting: 4 * RUNNING,
      prefixCache: true,
      tpotTargetMs: 1000,
      cacheKey: Int32Array.of(1, 2, 3, 4),
      policy: createPolicy(names),
    })
    this.#root = this.scheduler.prefixCache.root('model', '')
    while (this.scheduler.stats().running < RUNNING) {
      this.fill()
      const plan = this.plan()
      if (plan === undefined) throw new EngineError('ERR_INTERNAL', 'nothing to plan')
      this.settle(plan)
    }
    this.fill()
  }

  fill(): void {
    for (let missing = this.#numWaiting - this.scheduler.stats().waiting; missing > 0; missing--)
      this.#add()
  }

  plan(): StepPlan | undefined {
    this.#nowMs += 10
    return this.scheduler.plan(this.#nowMs)
  }

  encode(plan: StepPlan): void {
    this.#encoder.encode(plan, this.#updates, ONE_PART)
  }

  settle(plan: StepPlan): void {
    this.scheduler.settle(plan, this.#sampled, 10)
    for (let i = 0; i < plan.numSeqs; i++)
      if (plan.seqs[i].numConfirmed === plan.seqs[i].maxLen)
        this.scheduler.end(plan.seqs[i], 'finished')
    this.scheduler.release(plan)
  }

  /** Prompts of 16 to 512 tokens, a quarter of them with one of 16 beginnings; 16 to 512 new ones. */
  #add(): void {
    const integer = this.#integer
    const length = integer(16, 512)
    const family = integer(0, 63)
    const prompt = new Int32Array(length)
    for (let i = 0; i < length; i++)
      prompt[i] = family < 16 && i < 256 ? 1000 * family + i : integer(0, 31_999)
    this.scheduler.add(
      createSequence({
        id: this.#nextId++,
        kind: 'generate',
        prompt,
        maxTokens: integer(16, 512),
        priority: integer(0, 3),
        program: this.scheduler.program(`program ${integer(0, 99)}`),
        arrivalMs: this.#nowMs,
        cacheRoot: this.#root,
        readsCache: true,
      }),
    )
  }
}

interface Row {
  readonly order: string
  readonly budget: string
  readonly planUs: number
  readonly planP99Us: number
  readonly encodeUs: number
  readonly settleUs: number
  /** Means of the measured steps. */
  readonly running: number
  readonly waiting: number
  readonly admissions: number
}

function measure(names: PolicyNames, numSteps: number, numWaiting = WAITING): Row {
  const load = new Load(names, numWaiting)
  const plans: number[] = []
  const encodes: number[] = []
  const settles: number[] = []
  let [running, waiting, admissions] = [0, 0, 0]
  // The first third warms up.
  for (let step = -Math.floor(numSteps / 3); step < numSteps; step++) {
    load.fill()
    const before = load.scheduler.stats()
    const begin = performance.now()
    const plan = load.plan()
    const planned = performance.now()
    if (plan === undefined) throw new EngineError('ERR_INTERNAL', 'nothing to plan')
    load.encode(plan)
    const encoded = performance.now()
    load.settle(plan)
    const settled = performance.now()
    if (step < 0) continue
    plans.push(planned - begin)
    encodes.push(encoded - planned)
    settles.push(settled - encoded)
    running += before.running
    waiting += before.waiting
    admissions += before.waiting - load.scheduler.stats().waiting
  }
  const us = (times: number[], q: number) => 1000 * quantile(times, q)
  return {
    order: names.order ?? 'fcfs',
    budget: names.budget ?? 'fixed',
    planUs: us(plans, 0.5),
    planP99Us: us(plans, 0.99),
    encodeUs: us(encodes, 0.5),
    settleUs: us(settles, 0.5),
    running: running / numSteps,
    waiting: waiting / numSteps,
    admissions: admissions / numSteps,
  }
}

/** Live heap bytes at ten points of `numSteps` steps. */
function measureGrowth(numSteps: number): number[] {
  const { gc } = globalThis
  if (gc === undefined)
    throw new EngineError('ERR_USAGE', '--growth needs NODE_OPTIONS=--expose-gc')
  const load = new Load({ order: 'least-attained' }, WAITING)
  const bytes: number[] = []
  for (let step = 1; step <= numSteps; step++) {
    load.fill()
    const plan = load.plan()
    if (plan !== undefined) load.settle(plan)
    if (step % Math.floor(numSteps / 10) !== 0) continue
    gc()
    bytes.push(process.memoryUsage().heapUsed + process.memoryUsage().arrayBuffers)
  }
  return bytes
}

const rows = [
  ...ORDERS.map(({ name }) => measure({ order: name }, Number(values.steps))),
  // Above 128 it is the order of arrival.
  measure({ order: 'longest-prefix' }, Number(values.steps), 128),
  ...BUDGETS.slice(1).map(({ name }) => measure({ budget: name }, Number(values.steps))),
]
const columns = (row: Row) =>
  [
    row.order.padEnd(20),
    row.budget.padEnd(13),
    ...[row.planUs, row.planP99Us, row.encodeUs, row.settleUs].map((us) =>
      us.toFixed(0).padStart(8),
    ),
    row.running.toFixed(0).padStart(8),
    row.waiting.toFixed(0).padStart(8),
    row.admissions.toFixed(2).padStart(8),
  ].join(' ')
process.stdout.write(
  'order                budget         plan µs      p99   encode   settle  running  waiting  admits\n',
)
for (const row of rows) process.stdout.write(`${columns(row)}\n`)

const growth = Number(values.growth)
const heapBytes = growth > 0 ? measureGrowth(growth) : []
if (growth > 0)
  process.stdout.write(
    `live bytes over ${growth} steps: ${heapBytes.map((bytes) => `${(bytes / 1e6).toFixed(2)} MB`).join(', ')}\n`,
  )
if (values.json !== undefined)
  writeFileSync(
    values.json,
    `${JSON.stringify({ version: 1, suite: 'schedule', machine: describeMachine(), rows, growth: { steps: growth, heapBytes } }, null, 2)}\n`,
  )
