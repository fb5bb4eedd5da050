/**
 * StepLoop: plan → encode → submit → settle. Up to `depth` steps are in flight: the next one is planned
 * and submitted while the last one runs, reading tokens nobody has seen yet from their device slots.
 * Arrivals within one turn of the event loop share a step. A step that fails ends the loop: every
 * job gets the root cause, and so does whoever comes later.
 */

import { EngineError } from '../errors.ts'
import type { NativeRuntime } from '../native/binding.ts'
import type { GroupedStep, SchedulerGroups } from '../scheduler/groups.ts'
import type { StepPlan } from '../scheduler/plan.ts'
import type { ExpertSteps } from './expert-steps.ts'
import type { Job } from './jobs.ts'
import {
  createSlotUpdates,
  decodeResult,
  type GroupStep,
  type SlotUpdates,
  type StepEncoder,
  type StepResult,
} from './step.ts'
import type { StepLog } from './step-log.ts'
import { programFor, type StepProgram } from './step-programs.ts'
import type { FinishReason } from './types.ts'

export interface StepLoopOptions {
  readonly runtime: Pick<NativeRuntime, 'submit'>
  readonly programs: readonly StepProgram[]
  readonly scheduler: SchedulerGroups
  readonly encoder: StepEncoder
  readonly log: StepLog
  /** Undefined: experts stay where they are. */
  readonly experts: ExpertSteps | undefined
  readonly depth: number
  /** Milliseconds, monotonic. */
  readonly clock: () => number
  /** What the addon rejects with, as an EngineError. */
  readonly toError: (error: unknown) => EngineError
  readonly onEnd: (job: Job, reason: FinishReason) => void
}

const NO_TOKENS = new Int32Array(0)

export class StepLoop {
  readonly #options: StepLoopOptions
  readonly #jobs = new Map<number, Job>()
  /** By attention group, refilled for every step. */
  readonly #updates: SlotUpdates[] = []
  /** What a step gave them is still to be delivered. */
  readonly #settled: Job[] = []
  #inFlight = 0
  #numSteps = 0
  #wakeUp: NodeJS.Immediate | undefined
  #failure: EngineError | undefined
  #settledWaiters: (() => void)[] = []
  #idleWaiters: (() => void)[] = []

  constructor(options: StepLoopOptions) {
    this.#options = options
  }

  get failure(): EngineError | undefined {
    return this.#failure
  }
  get stepsInFlight(): number {
    return this.#inFlight
  }
  get numSteps(): number {
    return this.#numSteps
  }

  job(id: number): Job | undefined {
    return this.#jobs.get(id)
  }

  /** Queues a job; throws what Scheduler.add throws, or the failure that ended the loop. */
  add(job: Job): void {
    if (this.#failure !== undefined) throw this.#failure
    this.#options.scheduler.add(job.sequence)
    this.#jobs.set(job.sequence.id, job)
    this.wake()
  }

  /** Ends a job that has not ended; no step planned from now on names it. */
  cancel(job: Job, error: EngineError): void {
    if (!this.#jobs.delete(job.sequence.id)) return
    const reason = error.code === 'ERR_DEADLINE' ? 'deadline' : 'cancelled'
    this.#options.scheduler.end(job.sequence, reason)
    this.#options.onEnd(job, 'abort')
    job.fail(error)
    // What it held may let others in.
    this.wake()
    this.#notify()
  }

  cancelAll(error: EngineError): void {
    for (const job of [...this.#jobs.values()]) this.cancel(job, error)
  }

  /** Resolves once no step is in flight. */
  settled(): Promise<void> {
    return new Promise((resolve) => {
      this.#settledWaiters.push(resolve)
      this.#notify()
    })
  }

  /** Resolves once there is no job. */
  idle(): Promise<void> {
    return new Promise((resolve) => {
      this.#idleWaiters.push(resolve)
      this.#notify()
    })
  }

  /** Something changed that may let a step be planned. */
  wake(): void {
    this.#wakeUp ??= setImmediate(() => {
      this.#wakeUp = undefined
      this.#pump()
    })
  }

  #pump(): void {
    const { scheduler, depth, clock } = this.#options
    while (this.#failure === undefined && this.#inFlight < depth) {
      const startMs = clock()
      let step: GroupedStep | undefined
      try {
        step = scheduler.plan(startMs)
        const isStuck = step === undefined && this.#inFlight === 0 && !scheduler.hasHeld
        if (isStuck && scheduler.numUnfinished > 0)
          throw new EngineError('ERR_INTERNAL', 'sequences wait and nothing runs')
      } catch (error) {
        this.#fail(asEngineError(error))
        return
      }
      if (step === undefined) return
      this.#submit(step, startMs)
    }
  }

  #submit(step: GroupedStep, startMs: number): void {
    const { runtime, programs, encoder, experts, log, clock, toError } = this.#options
    this.#inFlight++
    this.#numSteps++
    let result: Promise<Int32Array>
    try {
      const groups = this.#collectGroups(step)
      const program = programFor(programs, step.maxTokens)
      const words = encoder.encodeGroups(step.id, groups, program, experts?.next())
      const nowMs = clock()
      log.begin(step, program, nowMs - startMs, nowMs)
      result = runtime.submit(program.programId, words)
    } catch (error) {
      result = Promise.reject(error)
    }
    result
      .then(
        (words) => this.#onResult(step, words),
        (error) => this.#onFault(step, toError(error)),
      )
      .catch((error) => {
        // Only a bug gets here; nobody must wait for ever because of it.
        this.#fail(asEngineError(error))
        this.#notify()
      })
  }

  #collectGroups({ plans }: GroupedStep): GroupStep[] {
    const groups: GroupStep[] = []
    plans.forEach((plan, group) => {
      if (plan === undefined) return
      this.#updates[group] ??= createSlotUpdates()
      const updates = this.#updates[group]
      this.#collectUpdates(plan, updates)
      groups.push({ plan, updates, group })
    })
    return groups
  }

  #collectUpdates(plan: StepPlan, updates: SlotUpdates): void {
    const { params, history, bias, allowed } = updates
    params.clear()
    history.clear()
    bias.clear()
    allowed.clear()
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      if (plan.isFirst[i] === 1 || sequence.minLen > 0 || sequence.isConstrained)
        this.#jobs.get(sequence.id)?.encode(plan, i, updates)
    }
  }

  #onResult(step: GroupedStep, words: Int32Array): void {
    let results: StepResult[]
    try {
      results = step.plans.map((plan, group) => decodeResult(words, plan?.numRows ?? 0, group))
      this.#options.experts?.settle(words)
    } catch (error) {
      this.#onFault(step, asEngineError(error))
      return
    }
    const { scheduler, log, clock } = this.#options
    // Times are of the whole step; they stand in group 0.
    const [times] = results
    this.#inFlight--
    const sampled = results.map((result) => result.sampled)
    scheduler.settle(step, sampled, times.runUs / 1000)
    const nowMs = clock()
    log.end(step, times, nowMs)
    step.plans.forEach((plan, group) => {
      if (plan !== undefined) this.#settleJobs(plan, results[group], nowMs)
    })
    scheduler.release(step)
    this.#pump()
    // After the next step is on its way: what readers do with their chunks delays none.
    for (const job of this.#settled.splice(0)) job.deliver()
    this.#notify()
  }

  #settleJobs(plan: StepPlan, result: StepResult, nowMs: number): void {
    for (let i = 0; i < plan.numSeqs; i++) {
      const job = this.#jobs.get(plan.seqs[i].id)
      if (job !== undefined) this.#settleJob(job, plan, i, result, nowMs)
    }
  }

  #settleJob(job: Job, plan: StepPlan, index: number, result: StepResult, nowMs: number): void {
    const { scheduler, onEnd } = this.#options
    let reason: FinishReason | undefined
    try {
      reason = job.settle(plan, index, result, nowMs)
    } catch (error) {
      // A bug in turning tokens into text fails its own request only.
      this.cancel(job, asEngineError(error))
      return
    }
    this.#settled.push(job)
    if (reason === undefined) return
    this.#jobs.delete(job.sequence.id)
    scheduler.end(job.sequence, 'finished')
    onEnd(job, reason)
  }

  #onFault(step: GroupedStep, error: EngineError): void {
    this.#inFlight--
    this.#fail(error)
    // All sequences have ended by now; this frees what the step held.
    const none = step.plans.map(() => NO_TOKENS)
    this.#options.scheduler.settle(step, none)
    this.#options.scheduler.release(step)
    this.#notify()
  }

  #fail(error: EngineError): void {
    this.#failure ??= error
    this.cancelAll(this.#failure)
  }

  #notify(): void {
    if (this.#inFlight === 0) for (const resolve of this.#settledWaiters.splice(0)) resolve()
    if (this.#jobs.size === 0) for (const resolve of this.#idleWaiters.splice(0)) resolve()
  }
}

function asEngineError(error: unknown): EngineError {
  if (error instanceof EngineError) return error
  return new EngineError('ERR_INTERNAL', `nanoweave failed: ${String(error)}`, { cause: error })
}
