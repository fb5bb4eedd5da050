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
import { StepBudget } from './budget.ts'
import {
  checkSchedulerConfig,
  requireFits,
  type SchedulerConfig,
  type SchedulerStats,
} from './config.ts'
import { SequenceMemory } from './memory.ts'
import { appendToPlan, clearPlan, createPlan, type StepPlan } from './plan.ts'
import type { AdmissionRefusal } from './policy.ts'
import { BlockProjection } from './projection.ts'
import { computeTarget, confirmToken, recordDecision, type Sequence } from './sequence.ts'

/** A prompt that found too few blocks is looked up again when more are available, or after this many steps. */
const RETRY_STEPS = 16

export class Scheduler {
  readonly config: SchedulerConfig
  readonly #memory: SequenceMemory
  readonly #budget: StepBudget
  readonly #projection: BlockProjection

  /** In order of arrival. */
  readonly #waiting: Sequence[] = []
  /** In order of arrival; considered before #waiting. */
  readonly #preempted: Sequence[] = []
  /** In order of admission; those that have left are dropped at the next plan. */
  readonly #running: Sequence[] = []
  /** Ending or preempting: wait for steps in flight to settle. */
  readonly #departing: Sequence[] = []
  readonly #freePlans: StepPlan[] = []
  /** Of the step being planned: sequences that compute more than one token. */
  readonly #prefills: Sequence[] = []
  readonly #candidates: Sequence[] = []
  #nextStep = 0
  #numRunning = 0
  #preemptions = 0
  #droppedTokens = 0
  #prefixQueries = 0
  #prefixHits = 0

  constructor(config: SchedulerConfig) {
    checkSchedulerConfig(config)
    this.config = config
    this.#memory = new SequenceMemory(config)
    this.#budget = new StepBudget(config.minChunk ?? 256, config.maxPartialPrefills ?? 4)
    this.#projection = new BlockProjection(config.blockSize)
  }

  get blocks(): BlockPool {
    return this.#memory.pool
  }

  get prefixCache(): PrefixCache {
    return this.#memory.prefixCache
  }

  /** Sequences that have not ended, in flight ones included. */
  get numUnfinished(): number {
    return this.#numRunning + this.#waiting.length + this.#preempted.length + this.#departing.length
  }

  get numFreeSlots(): number {
    return this.#memory.numFreeSlots
  }

  stats(): SchedulerStats {
    return {
      running: this.#numRunning,
      waiting: this.#waiting.length + this.#preempted.length,
      preemptions: this.#preemptions,
      droppedTokens: this.#droppedTokens,
      prefixQueries: this.#prefixQueries,
      prefixHits: this.#prefixHits,
    }
  }

  /** How many would be considered before it; -1: it does not wait. */
  queuePosition(sequence: Sequence): number {
    if (sequence.state === 'preempted') return this.#preempted.indexOf(sequence)
    if (sequence.state !== 'waiting') return -1
    return this.#preempted.length + this.#waiting.indexOf(sequence)
  }

  /**
   * Queues a sequence. Ids ascend. ERR_CONTEXT_LENGTH and ERR_KV_EXHAUSTED when it can never run,
   * ERR_QUEUE_FULL when too many wait.
   */
  add(sequence: Sequence): void {
    requireFits(sequence, this.config)
    const { maxNumSeqs, maxWaiting } = this.config
    // What could run at once does not count as waiting, though no step has admitted it yet.
    const ahead = this.#numRunning + this.#preempted.length + this.#waiting.length
    if (ahead >= maxNumSeqs + maxWaiting)
      throw new EngineError(
        'ERR_QUEUE_FULL',
        `${maxNumSeqs} requests run and ${maxWaiting} wait already; try again later or raise maxWaiting`,
      )
    sequence.state = 'waiting'
    recordDecision(sequence, 'queued', this.#nextStep)
    this.#waiting.push(sequence)
  }

  /** Ends a sequence in any state; what it holds is freed as soon as no step in flight names it. */
  end(sequence: Sequence, reason: 'finished' | 'cancelled'): void {
    switch (sequence.state) {
      case 'new':
      case 'ending':
      case 'ended':
        return
      case 'waiting':
        this.#waiting.splice(this.#waiting.indexOf(sequence), 1)
        break
      case 'preempted':
        this.#preempted.splice(this.#preempted.indexOf(sequence), 1)
        break
      case 'preempting':
        this.#departing.splice(this.#departing.indexOf(sequence), 1)
        break
      case 'running':
        this.#numRunning--
        break
    }
    recordDecision(sequence, reason, this.#nextStep)
    if (reason === 'finished' && sequence.kind === 'generate')
      this.#projection.observeOutput(sequence.numConfirmed - sequence.promptLen)
    if (sequence.inFlight > 0) {
      sequence.state = 'ending'
      this.#departing.push(sequence)
    } else {
      this.#free(sequence)
    }
  }

  /**
   * The next step, or undefined when there is nothing to compute before a step in flight settles.
   * Every plan must be given to `settle`, in order.
   */
  plan(nowMs: number): StepPlan | undefined {
    const step = this.#nextStep
    const plan = this.#freePlans.pop() ?? createPlan(this.config.maxNumSeqs)
    plan.id = step
    this.#dropDeparted()
    const preempted = this.#makeRoomForDecodes()
    const { maxNumBatchedTokens, maxRows, policy } = this.config
    this.#budget.begin(maxNumBatchedTokens, maxRows)
    const stalled = this.#planDecodes(plan, nowMs)
    const numDecodes = plan.numSeqs
    this.#budget.limitTokens(policy.tokenBudget({ maxNumBatchedTokens, numDecodes }) - numDecodes)
    this.#continuePrefills()
    if (!preempted && !stalled) this.#admitAll(nowMs)
    // What is left after admission goes to prompts in order of admission.
    for (let i = 0; i < this.#prefills.length; i++) this.#budget.grantRest(this.#prefills[i])
    for (let i = 0; i < this.#prefills.length; i++) {
      const sequence = this.#prefills[i]
      if (sequence.chunk > 0) appendToPlan(plan, sequence, sequence.chunk, nowMs)
      else recordDecision(sequence, 'deferred_budget', step)
    }
    this.#prefills.length = 0
    if (plan.numSeqs === 0) {
      this.#freePlans.push(plan)
      return undefined
    }
    this.#nextStep++
    return plan
  }

  /**
   * A step has run. `sampled`: [numRows] token of each row. Appends the tokens of sequences that
   * still want them (plan.accepted) and frees what only this step held. Call `release` with the
   * plan when done with it.
   */
  settle(plan: StepPlan, sampled: Int32Array): void {
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
      if (sequence.state === 'ending') {
        this.#departing.splice(this.#departing.indexOf(sequence), 1)
        this.#free(sequence)
      } else if (sequence.state === 'preempting') {
        this.#departing.splice(this.#departing.indexOf(sequence), 1)
        this.#requeue(sequence)
      }
    }
  }

  release(plan: StepPlan): void {
    clearPlan(plan)
    this.#freePlans.push(plan)
  }

  // ---- planning ----

  #dropDeparted(): void {
    const running = this.#running
    let kept = 0
    for (let i = 0; i < running.length; i++) {
      const sequence = running[i]
      if (sequence.state === 'running') running[kept++] = sequence
    }
    running.length = kept
  }

  /**
   * Preempts until the blocks that caught-up sequences need are there, or will be once steps in
   * flight settle (those sequences then miss a step). True: something was preempted.
   */
  #makeRoomForDecodes(): boolean {
    let needed = 0
    for (let i = 0; i < this.#running.length; i++) {
      if (this.#memory.needsBlock(this.#running[i])) needed++
    }
    if (needed <= this.blocks.numAvailable) return false
    let coming = 0
    for (const sequence of this.#departing) coming += this.#memory.ownBlocks(sequence)
    const candidates = this.#candidates
    candidates.length = 0
    for (const sequence of this.#running) {
      if (isExhausted(sequence)) coming += this.#memory.ownBlocks(sequence)
      else candidates.push(sequence)
    }
    let preempted = false
    while (needed > this.blocks.numAvailable + coming && candidates.length > 0) {
      const index = this.config.policy.victim(candidates)
      const victim = candidates[index]
      candidates.splice(index, 1)
      if (this.#memory.needsBlock(victim)) needed--
      if (victim.inFlight > 0) coming += this.#memory.ownBlocks(victim)
      this.#preempt(victim)
      preempted = true
    }
    candidates.length = 0
    this.#dropDeparted()
    return preempted
  }

  /** True: a sequence missed the step for want of a block. */
  #planDecodes(plan: StepPlan, nowMs: number): boolean {
    let stalled = false
    for (let i = 0; i < this.#running.length; i++) {
      const sequence = this.#running[i]
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
      this.#budget.takeDecode()
      appendToPlan(plan, sequence, 1, nowMs)
    }
    return stalled
  }

  /** Shares the budget among prompts begun already, and one that may be admitted. */
  #continuePrefills(): void {
    const prefills = this.#prefills
    let sharers = prefills.length
    if (this.#hasWaiting() && this.#budget.hasRoomBeside(sharers)) sharers++
    for (let i = 0; i < prefills.length; i++) this.#budget.grantShare(prefills[i], sharers--)
  }

  #admitAll(nowMs: number): void {
    while (this.#hasWaiting()) {
      const queue = this.#preempted.length > 0 ? this.#preempted : this.#waiting
      const index = queue === this.#preempted ? 0 : this.config.policy.next(queue, nowMs)
      const candidate = queue[index]
      const refusal = this.#tryAdmit(candidate)
      if (refusal !== undefined) {
        recordDecision(candidate, refusal, this.#nextStep)
        return
      }
      queue.splice(index, 1)
      this.#prefills.push(candidate)
      this.#budget.grantShare(candidate, this.#budget.sharersBeside(this.#hasWaiting()))
    }
  }

  /** Makes a waiting sequence run, blocks for all its tokens included; or says why not. */
  #tryAdmit(sequence: Sequence): AdmissionRefusal | undefined {
    if (this.#running.length >= this.config.maxNumSeqs) return 'wait_max_seqs'
    if (this.#budget.isBacklogFull) return 'wait_prefill_backlog'
    if (this.#budget.isSpent) return 'wait_budget'
    const needsSlot = sequence.kind === 'generate' && sequence.slot < 0
    if (needsSlot && this.numFreeSlots === 0) return 'wait_slot'

    const memory = this.#memory
    const available = this.blocks.numAvailable
    const alone = this.blocks.numUsed === 0
    if (
      sequence.refusal !== undefined &&
      !alone &&
      available <= sequence.refusedAvailable &&
      this.#nextStep < sequence.refusedStep + RETRY_STEPS
    )
      return sequence.refusal

    const needed = memory.takeCached(sequence)
    const verdict = this.config.policy.admission({
      // Cached blocks it has just taken were available before, like those it still needs.
      neededBlocks: needed + (available - this.blocks.numAvailable),
      availableBlocks: available,
      totalBlocks: this.config.numBlocks,
      projectedPeakBlocks: this.#projection.peak(
        this.#running,
        sequence,
        this.blocks.numUsed,
        needed,
      ),
      alone,
    })
    if (verdict !== 'admit') {
      this.#memory.releaseBlocks(sequence)
      sequence.refusal = verdict
      sequence.refusedStep = this.#nextStep
      sequence.refusedAvailable = available
      return verdict
    }
    if (needed > this.blocks.numAvailable)
      throw new EngineError(
        'ERR_INTERNAL',
        `policy ${this.config.policy.name} admitted a sequence that needs ${needed} blocks with ${this.blocks.numAvailable} available`,
      )
    memory.takeRest(sequence, needed)
    sequence.refusal = undefined
    if (needsSlot) memory.takeSlot(sequence)
    recordDecision(
      sequence,
      sequence.state === 'preempted' ? 'resumed' : 'admitted',
      this.#nextStep,
    )
    if (sequence.state === 'waiting' && memory.readsCache(sequence)) {
      sequence.numCachedTokens = sequence.numComputed
      this.#prefixQueries += sequence.promptLen
      this.#prefixHits += sequence.numComputed
    }
    if (sequence.numHitBlocks > 0) recordDecision(sequence, 'prefix_hit', this.#nextStep)
    sequence.state = 'running'
    this.#running.push(sequence)
    this.#numRunning++
    return undefined
  }

  // ---- leaving ----

  #preempt(sequence: Sequence): void {
    recordDecision(sequence, 'preempted', this.#nextStep)
    sequence.numPreemptions++
    this.#preemptions++
    this.#numRunning--
    if (sequence.inFlight > 0) {
      sequence.state = 'preempting'
      this.#departing.push(sequence)
    } else {
      this.#requeue(sequence)
    }
  }

  #requeue(sequence: Sequence): void {
    this.#memory.releaseBlocks(sequence)
    sequence.numComputed = 0
    sequence.numSettled = 0
    sequence.state = 'preempted'
    let at = this.#preempted.length
    while (at > 0 && this.#preempted[at - 1].id > sequence.id) at--
    this.#preempted.splice(at, 0, sequence)
  }

  #free(sequence: Sequence): void {
    this.#memory.releaseBlocks(sequence)
    this.#memory.releaseSlot(sequence)
    sequence.state = 'ended'
  }

  #hasWaiting(): boolean {
    return this.#preempted.length > 0 || this.#waiting.length > 0
  }
}

/** Everything it will ever compute is planned. */
function isExhausted(sequence: Sequence): boolean {
  return (
    computeTarget(sequence) === sequence.numComputed &&
    (sequence.kind !== 'generate' || sequence.numTokens === sequence.maxLen)
  )
}
