/**
 * Scheduler: decides, step by step, which tokens of which sequences are computed. Pure: no clock, no
 * promises, no native import; the caller passes the time in and says what happened (`add`, `end`,
 * `settle`), and `plan` answers with the next step. The same calls give the same plans.
 *
 * A step is filled in this order: one token for every running sequence that has caught up (a
 * running sequence never waits for a prompt longer than one chunk), further chunks of prompts
 * already begun, then admission. Steps may be planned while earlier ones are in flight; what a
 * sequence holds is freed only when every step that names it has settled.
 */

import { EngineError } from '../errors.ts'
import type { BlockPool } from '../kv/block-pool.ts'
import type { PrefixCache } from '../kv/prefix-cache.ts'
import { Admission } from './admission.ts'
import { StepBudget } from './budget.ts'
import {
  checkSchedulerConfig,
  requireFits,
  type SchedulerConfig,
  type SchedulerStats,
} from './config.ts'
import { createStepCosts, DEFAULT_PRIOR, type StepCosts } from './costs.ts'
import { Forks } from './forks.ts'
import { SequenceMemory } from './memory.ts'
import { appendToPlan, clearPlan, createPlan, type StepPlan } from './plan.ts'
import type { AdmissionRefusal, EndReason } from './policy.ts'
import { Preemption } from './preemption.ts'
import { type ProgramAccount, Programs } from './programs.ts'
import { BlockProjection } from './projection.ts'
import { computeTarget, confirmToken, recordDecision, type Sequence } from './sequence.ts'
import { SwapSpace } from './swap.ts'
import { WaitingQueue } from './waiting-queue.ts'

const STARVATION_MS = 30_000
/** After this many steps without a token for prompts, whatever the budget says, they get a chunk. */
const MAX_DRY_STEPS = 32
/** Blocks hashed in a step to order what waits by its prefix. */
const PROBE_HASHES = 64

export class Scheduler {
  readonly config: SchedulerConfig
  readonly #memory: SequenceMemory
  readonly #budget: StepBudget
  readonly #projection: BlockProjection
  readonly #swap: SwapSpace
  readonly #admission: Admission
  readonly #costs: StepCosts
  readonly #programs = new Programs()
  readonly #minChunk: number

  readonly #waiting: WaitingQueue
  readonly #forks = new Forks()
  /** In order of admission; those that have left are dropped at the next plan. */
  readonly #running: Sequence[] = []
  readonly #preemption: Preemption
  readonly #freePlans: StepPlan[] = []
  /** Of the step being planned: sequences that compute more than one token. */
  readonly #prefills: Sequence[] = []
  readonly #orderState = { nowMs: 0, plannedTokens: 0, expectedOutput: 0 }
  readonly #probe: (sequence: Sequence) => void
  #probesLeft = 0
  #tpotTargetMs = Number.POSITIVE_INFINITY
  #dryPrefillSteps = 0
  #nextStep = 0
  #numRunning = 0
  #someLeft = false
  #droppedTokens = 0

  constructor(config: SchedulerConfig) {
    checkSchedulerConfig(config)
    this.config = config
    this.#minChunk = config.minChunk ?? 256
    this.#memory = new SequenceMemory(config)
    this.#budget = new StepBudget(this.#minChunk, config.maxPartialPrefills ?? 4)
    this.#projection = new BlockProjection(config.blockSize)
    this.#swap = new SwapSpace(config.numHostBlocks ?? 0, config.blockSize)
    this.#admission = new Admission(config, this.#memory, this.#projection, this.#swap)
    this.#costs = config.costs ?? createStepCosts(config.costPrior ?? DEFAULT_PRIOR)
    this.#preemption = new Preemption(config, this.#memory, this.#swap, this.#costs)
    this.#waiting = new WaitingQueue(config.policy.order, config.starvationMs ?? STARVATION_MS)
    this.#probe = (sequence) => {
      this.#probesLeft -= this.#memory.probe(sequence, this.#probesLeft)
    }
  }

  get blocks(): BlockPool {
    return this.#memory.pool
  }

  get prefixCache(): PrefixCache {
    return this.#memory.prefixCache
  }

  /** Sequences that have not ended, in flight ones included. */
  get numUnfinished(): number {
    return this.#numRunning + this.#numWaiting() + this.#preemption.departing.length
  }

  /** A sequence waits for its caller to call `resume`. */
  get hasHeld(): boolean {
    const isHeld = (sequence: Sequence) => sequence.isHeld
    return this.#running.some(isHeld) || this.#preemption.queue.some(isHeld)
  }

  /** A held sequence may be planned again. */
  resume(sequence: Sequence): void {
    if (!sequence.isHeld || sequence.state === 'ending' || sequence.state === 'ended') return
    sequence.isHeld = false
    this.config.observer?.resumed(sequence)
  }

  /** Its blocks will stay for `ttlMs` after a regular end, unless it has ended by now. */
  pin(sequence: Sequence, ttlMs: number): void {
    if (sequence.state === 'ending' || sequence.state === 'ended') return
    sequence.pinTtlMs = ttlMs
    this.config.observer?.pinned(sequence)
  }

  get numFreeSlots(): number {
    return this.#memory.numFreeSlots
  }

  stats(): SchedulerStats {
    return {
      running: this.#numRunning,
      waiting: this.#numWaiting(),
      preemptions: this.#preemption.count,
      swapsOut: this.#swap.numSwapsOut,
      swapsIn: this.#swap.numSwapsIn,
      hostBlocksUsed: this.#swap.host.numUsed,
      pinnedBlocks: this.#memory.pins.numBlocks,
      droppedTokens: this.#droppedTokens,
      prefixQueries: this.#admission.prefixQueries,
      prefixHits: this.#admission.prefixHits,
    }
  }

  /** Sequences that `add` would take. What could run at once does not count as waiting. */
  get room(): number {
    const { maxNumSeqs, maxWaiting } = this.config
    return maxNumSeqs + maxWaiting - this.#numRunning - this.#numWaiting()
  }

  /** What the program of that name has been given; for SequenceOptions. */
  program(name: string): ProgramAccount {
    return this.#programs.get(name)
  }

  /** How many came before it and wait too; -1: it does not wait. */
  queuePosition(sequence: Sequence): number {
    const { queue } = this.#preemption
    if (sequence.state === 'preempted') return queue.indexOf(sequence)
    if (sequence.state !== 'waiting') return -1
    const position = this.#forks.position(sequence)
    return queue.length + (position >= 0 ? position : this.#waiting.position(sequence))
  }

  /**
   * Queues a sequence. Ids ascend. ERR_CONTEXT_LENGTH and ERR_KV_EXHAUSTED when it can never run,
   * ERR_QUEUE_FULL when too many wait.
   */
  add(sequence: Sequence): void {
    requireFits(sequence, this.config)
    const { maxNumSeqs, maxWaiting } = this.config
    if (this.room <= 0)
      throw new EngineError(
        'ERR_QUEUE_FULL',
        `${maxNumSeqs} requests run and ${maxWaiting} wait already; try again later or raise maxWaiting`,
      )
    sequence.state = 'waiting'
    sequence.arrivalTokens = this.#orderState.plannedTokens
    recordDecision(sequence, 'queued', this.#nextStep)
    this.#orderState.expectedOutput = this.#projection.meanOutput
    if (this.#forks.add(sequence)) recordDecision(sequence, 'wait_fork', this.#nextStep)
    else this.#waiting.push(sequence, this.#orderState)
    this.config.observer?.added(sequence)
  }

  /** Ends a sequence in any state; what it holds is freed as soon as no step in flight names it. */
  end(sequence: Sequence, reason: EndReason): void {
    switch (sequence.state) {
      case 'new':
      case 'ending':
      case 'ended':
        return
      case 'waiting':
        if (!this.#forks.remove(sequence)) this.#waiting.remove(sequence)
        break
      case 'preempted':
        remove(this.#preemption.queue, sequence)
        break
      case 'preempting':
        remove(this.#preemption.departing, sequence)
        break
      case 'running':
        this.#numRunning--
        this.#someLeft = true
        break
    }
    this.config.observer?.ended(sequence, reason)
    recordDecision(sequence, reason, this.#nextStep)
    if (reason === 'finished') this.#observeFinished(sequence)
    if (sequence.inFlight > 0) this.#preemption.depart(sequence, 'ending')
    else this.#free(sequence)
    const heir = this.#forks.onEnded(sequence)
    if (heir !== undefined) this.#waiting.insert(heir, this.#orderState)
  }

  /**
   * The next step, or undefined when there is nothing to compute before a step in flight settles.
   * Every plan must be given to `settle`, in order. `nowMs` never goes back.
   * `id`: of the step, ascending; given where other groups of sequences take part in it.
   */
  plan(nowMs: number, id = this.#nextStep): StepPlan | undefined {
    this.#nextStep = id
    const plan = this.#freePlans.pop() ?? createPlan(this.config.maxNumSeqs)
    plan.id = this.#nextStep
    this.#orderState.nowMs = nowMs
    this.#orderState.expectedOutput = this.#projection.meanOutput
    this.#memory.pins.expire(nowMs)
    this.#dropDeparted()
    const preempted = this.#preemption.makeRoom(this.#running, plan.id)
    this.#numRunning -= preempted
    if (preempted > 0) this.#someLeft = true
    this.#dropDeparted()
    this.#budget.begin(this.config.maxNumBatchedTokens, this.config.maxRows)
    const stalled = this.#planDecodes(plan, nowMs)
    this.#limitPrefills(plan)
    this.#continuePrefills()
    if (preempted === 0 && !stalled) this.#admitAll(plan)
    this.#planPrefills(plan, nowMs)
    if (plan.numSeqs === 0) {
      this.config.observer?.planned(nowMs, undefined)
      this.#freePlans.push(plan)
      return undefined
    }
    this.#swap.emit(plan)
    this.#nextStep++
    this.#orderState.plannedTokens += plan.numTokens
    this.config.observer?.planned(nowMs, plan)
    return plan
  }

  /**
   * A step has run, in `runMs` (0: not known). `sampled`: [numRows] token of each row. Appends the
   * tokens of sequences that still want them (plan.accepted) and frees what only this step held.
   * Call `release` with the plan when done with it.
   */
  settle(plan: StepPlan, sampled: Int32Array, runMs = 0): void {
    this.config.observer?.settling(plan, sampled, runMs)
    const swapped = plan.swapOuts.numBlocks + plan.swapIns.numBlocks
    if (runMs > 0) this.#costs.observe(plan.numTokens, plan.context, swapped, runMs)
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      sequence.inFlight--
      sequence.numSettled = plan.starts[i] + plan.counts[i]
      plan.accepted[i] = 0
      if (plan.samples[i] === 1) {
        if (sequence.state === 'ending') {
          this.#droppedTokens++
        } else {
          confirmToken(sequence, sampled[plan.firstRows[i]])
          plan.accepted[i] = 1
        }
      }
      this.#memory.enterBlocks(sequence)
      if (sequence.inFlight > 0) continue
      const { state } = sequence
      if (state !== 'ending' && state !== 'preempting') continue
      remove(this.#preemption.departing, sequence)
      if (state === 'ending') this.#free(sequence)
      else this.#preemption.requeue(sequence, this.#nextStep)
    }
  }

  release(plan: StepPlan): void {
    clearPlan(plan)
    this.#freePlans.push(plan)
  }

  // ---- planning ----

  #dropDeparted(): void {
    if (!this.#someLeft) return
    const running = this.#running
    let kept = 0
    for (let i = 0; i < running.length; i++) {
      const sequence = running[i]
      if (sequence.state === 'running') running[kept++] = sequence
    }
    running.length = kept
    this.#someLeft = false
  }

  /** True: a sequence missed the step for want of a block. */
  #planDecodes(plan: StepPlan, nowMs: number): boolean {
    const running = this.#running
    const { tpotTargetMs = Number.POSITIVE_INFINITY } = this.config
    let target = Number.POSITIVE_INFINITY
    let stalled = false
    for (let i = 0; i < running.length; i++) {
      const sequence = running[i]
      const remaining = computeTarget(sequence) - sequence.numComputed
      if (remaining === 0) continue
      if (remaining > 1) {
        this.#prefills.push(sequence)
        continue
      }
      if (this.#memory.needsBlock(sequence) && !this.#memory.addBlock(sequence)) {
        recordDecision(sequence, 'stalled_blocks', plan.id)
        stalled = true
        continue
      }
      target = Math.min(target, sequence.tpotTargetMs, tpotTargetMs)
      this.#budget.takeDecode()
      appendToPlan(plan, sequence, 1, nowMs)
    }
    this.#tpotTargetMs = target
    return stalled
  }

  /** Leaves prompts the tokens that the policy gives them. */
  #limitPrefills(plan: StepPlan): void {
    const { maxNumBatchedTokens, policy } = this.config
    const numDecodes = plan.numSeqs
    let pendingTokens = this.#waiting.numTokens + this.#preemption.pendingTokens + this.#forks.size
    for (const sequence of this.#prefills)
      pendingTokens += computeTarget(sequence) - sequence.numComputed
    const tokens = policy.budget.tokens({
      maxNumBatchedTokens,
      numDecodes,
      decodeContext: plan.context,
      pendingTokens,
      prefillStart: this.#prefills.length > 0 ? this.#prefills[0].numComputed : 0,
      tpotTargetMs: this.#tpotTargetMs,
      costs: this.#costs,
    })
    const isDry = tokens <= numDecodes && pendingTokens > 0
    this.#dryPrefillSteps = isDry ? this.#dryPrefillSteps + 1 : 0
    const isStarving = this.#dryPrefillSteps > MAX_DRY_STEPS
    if (isStarving) this.#dryPrefillSteps = 0
    this.#budget.limitTokens(isStarving ? this.#minChunk : tokens - numDecodes)
  }

  /** Shares the budget among prompts begun already, and one that may be admitted. */
  #continuePrefills(): void {
    const prefills = this.#prefills
    let sharers = prefills.length
    if (this.#hasWaiting() && this.#budget.hasRoomBeside(sharers)) sharers++
    for (let i = 0; i < prefills.length; i++) this.#budget.grantShare(prefills[i], sharers--)
  }

  #admitAll(plan: StepPlan): void {
    if (!this.#hasWaiting()) return
    this.#waiting.begin()
    this.#probesLeft = PROBE_HASHES
    while (this.#hasWaiting()) {
      const candidate = this.#nextCandidate(plan)
      if (candidate === undefined) return
      const refusal = this.#whyNot() ?? this.#tryAdmit(candidate, plan)
      if (refusal !== undefined) {
        recordDecision(candidate, refusal, plan.id)
        return
      }
      this.#start(candidate)
    }
  }

  #tryAdmit(candidate: Sequence, plan: StepPlan): AdmissionRefusal | undefined {
    const isNew = candidate.state === 'waiting'
    const isQueued = isNew && candidate.waitIndex >= 0
    const isOverdue = isQueued && this.#waiting.isOverdue(this.#orderState.nowMs)
    const reason = isOverdue ? 'admitted_overdue' : isNew ? 'admitted' : 'resumed'
    return this.#admission.tryAdmit(candidate, this.#running, plan, reason)
  }

  #nextCandidate(plan: StepPlan): Sequence | undefined {
    const [preempted] = this.#preemption.queue
    if (preempted !== undefined) {
      // Copied back, it would have nothing to compute.
      if (!preempted.isHeld || preempted.hostCount === 0) return preempted
      recordDecision(preempted, 'wait_held', plan.id)
      return undefined
    }
    const fork = this.#nextFork()
    if (fork !== undefined) return fork
    // Ordering what waits costs more than the reason is worth when nobody can be admitted.
    const refusal = this.#whyNot()
    if (refusal === undefined) return this.#waiting.next(this.#orderState, this.#probe)
    recordDecision(this.#waiting.oldest as Sequence, refusal, plan.id)
    return undefined
  }

  /** Forks come before what is new, unless that has waited too long. */
  #nextFork(): Sequence | undefined {
    const fork = this.#forks.next
    if (fork === undefined || !this.#waiting.isOverdue(this.#orderState.nowMs)) return fork
    return (this.#waiting.oldest as Sequence).id < fork.id ? undefined : fork
  }

  /** Why nobody at all is admitted now. */
  #whyNot(): AdmissionRefusal | undefined {
    if (this.#running.length >= this.config.maxNumSeqs) return 'wait_max_seqs'
    if (this.#budget.isBacklogFull) return 'wait_prefill_backlog'
    if (this.#budget.isSpent) return 'wait_budget'
    return undefined
  }

  /** An admitted sequence runs, and shares the step's budget. */
  #start(sequence: Sequence): void {
    if (sequence.state === 'preempted') this.#preemption.queue.shift()
    else if (!this.#forks.remove(sequence)) this.#waiting.remove(sequence)
    sequence.state = 'running'
    this.#running.push(sequence)
    this.#numRunning++
    this.#prefills.push(sequence)
    this.#budget.grantShare(sequence, this.#budget.sharersBeside(this.#hasWaiting()))
  }

  #planPrefills(plan: StepPlan, nowMs: number): void {
    const prefills = this.#prefills
    // What is left after admission goes to prompts in order of admission.
    for (let i = 0; i < prefills.length; i++) this.#budget.grantRest(prefills[i])
    for (let i = 0; i < prefills.length; i++) {
      const sequence = prefills[i]
      if (sequence.chunk > 0) appendToPlan(plan, sequence, sequence.chunk, nowMs)
      else recordDecision(sequence, 'deferred_budget', plan.id)
    }
    prefills.length = 0
  }

  // ---- leaving ----

  #observeFinished(sequence: Sequence): void {
    if (sequence.kind === 'generate')
      this.#projection.observeOutput(sequence.numConfirmed - sequence.promptLen)
    const { pinTtlMs } = sequence
    if (pinTtlMs > 0 && this.#memory.pin(sequence, this.#orderState.nowMs + pinTtlMs))
      recordDecision(sequence, 'pinned', this.#nextStep)
  }

  #free(sequence: Sequence): void {
    this.#swap.drop(sequence)
    this.#memory.releaseBlocks(sequence)
    this.#memory.releaseSlot(sequence)
    sequence.state = 'ended'
  }

  /** Somebody may be admitted. */
  #hasWaiting(): boolean {
    return this.#preemption.queue.length + this.#waiting.size > 0 || this.#forks.next !== undefined
  }

  #numWaiting(): number {
    return this.#preemption.queue.length + this.#waiting.size + this.#forks.size
  }
}

function remove(sequences: Sequence[], sequence: Sequence): void {
  sequences.splice(sequences.indexOf(sequence), 1)
}
