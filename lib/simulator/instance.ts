/**
 * Instance: one engine on a virtual clock. The scheduler is the real one, its plans are timed instead
 * of run, and two steps are in flight as in the engine: the next is planned while one runs.
 */

import type { SchedulerConfig } from '../scheduler/config.ts'
import type { StepPlan } from '../scheduler/plan.ts'
import { Scheduler } from '../scheduler/scheduler.ts'
import { createSequence, type Sequence } from '../scheduler/sequence.ts'
import type { StepTimer } from './step-timer.ts'

const DEPTH = 2

/** What a request has to tell about its run. */
export interface RequestRecord {
  readonly arrivalMs: number
  readonly promptTokens: number
  readonly outputTokens: number
  /** NaN until it happens. */
  firstTokenMs: number
  finishedMs: number
  /** Longest time between two of its tokens. */
  longestGapMs: number
}

interface Running {
  readonly record: RequestRecord
  readonly sequence: Sequence
  lastTokenMs: number
}

interface StepInFlight {
  readonly plan: StepPlan
  readonly endMs: number
  readonly runMs: number
}

export interface InstanceStats {
  readonly steps: number
  readonly busyMs: number
  readonly preemptions: number
}

const ROOT = new Int32Array(4)

export class Instance {
  readonly #scheduler: Scheduler
  readonly #timer: StepTimer
  readonly #running = new Map<number, Running>()
  readonly #inFlight: StepInFlight[] = []
  readonly #sampled: Int32Array
  readonly #onFinished: (record: RequestRecord, nowMs: number) => void
  #nextId = 0
  #deviceFreeMs = 0
  #outstanding = 0
  #steps = 0
  #busyMs = 0

  constructor(
    config: SchedulerConfig,
    timer: StepTimer,
    onFinished: (record: RequestRecord, nowMs: number) => void,
  ) {
    this.#scheduler = new Scheduler(config)
    this.#timer = timer
    this.#sampled = new Int32Array(config.maxRows)
    this.#onFinished = onFinished
  }

  /** Tokens of requests that are not finished: what a router compares. */
  get outstanding(): number {
    return this.#outstanding
  }

  /** When its next step ends; Infinity: it is idle. */
  get nextEventMs(): number {
    return this.#inFlight[0]?.endMs ?? Number.POSITIVE_INFINITY
  }

  stats(): InstanceStats {
    const { preemptions } = this.#scheduler.stats()
    return { steps: this.#steps, busyMs: this.#busyMs, preemptions }
  }

  /** Throws what Scheduler.add throws. `promptTokens` and `outputTokens`: as this instance sees them. */
  add(record: RequestRecord, promptTokens: number, outputTokens: number, nowMs: number): void {
    const id = this.#nextId++
    const sequence = createSequence({
      id,
      kind: 'generate',
      prompt: new Int32Array(promptTokens),
      maxTokens: outputTokens,
      arrivalMs: nowMs,
      cacheRoot: ROOT,
      readsCache: false,
    })
    this.#scheduler.add(sequence)
    this.#running.set(id, { record, sequence, lastTokenMs: record.firstTokenMs })
    this.#outstanding += promptTokens + outputTokens
    this.#pump(nowMs)
  }

  /** Ends the step that ends at nextEventMs. */
  advance(): void {
    const { plan, endMs, runMs } = this.#inFlight.shift()!
    this.#scheduler.settle(plan, this.#sampled, runMs)
    for (let i = 0; i < plan.numSeqs; i++) {
      if (plan.accepted[i] === 1) this.#onToken(this.#running.get(plan.seqs[i]!.id)!, endMs)
    }
    this.#scheduler.release(plan)
    this.#pump(endMs)
  }

  #onToken(running: Running, nowMs: number): void {
    const { record, sequence } = running
    if (Number.isNaN(record.firstTokenMs)) record.firstTokenMs = nowMs
    if (nowMs - running.lastTokenMs > record.longestGapMs) {
      record.longestGapMs = nowMs - running.lastTokenMs
    }
    running.lastTokenMs = nowMs
    if (sequence.numConfirmed < sequence.maxLen) return
    this.#running.delete(sequence.id)
    this.#outstanding -= sequence.maxLen
    this.#scheduler.end(sequence, 'finished')
    this.#onFinished(record, nowMs)
  }

  #pump(nowMs: number): void {
    while (this.#inFlight.length < DEPTH) {
      const plan = this.#scheduler.plan(nowMs)
      if (plan === undefined) return
      const runMs = this.#timer.stepMs(plan)
      const endMs = Math.max(nowMs, this.#deviceFreeMs) + runMs
      this.#deviceFreeMs = endMs
      this.#steps++
      this.#busyMs += runMs
      this.#inFlight.push({ plan, endMs, runMs })
    }
  }
}
