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
import { BlockPool } from '../kv/block-pool.ts'
import { PrefixCache } from '../kv/prefix-cache.ts'
import { clearPlan, createPlan, type StepPlan } from './plan.ts'
import type { AdmissionRefusal, Reason, SchedulingPolicy } from './policy.ts'
import { BlockProjection } from './projection.ts'
import {
  computeTarget,
  confirmToken,
  finalTarget,
  recordDecision,
  type Sequence,
} from './sequence.ts'

export interface SchedulerConfig {
  readonly maxNumSeqs: number
  /** At least maxNumSeqs, so that decodes always fit. */
  readonly maxNumBatchedTokens: number
  /** Rows that reach the logits in a step; at least maxNumSeqs. */
  readonly maxRows: number
  readonly maxModelLen: number
  readonly numBlocks: number
  readonly blockSize: number
  /** Sampling slots; at least 2 · maxNumSeqs, so that ended sequences do not hold up new ones. */
  readonly numSlots: number
  readonly maxWaiting: number
  readonly prefixCache: boolean
  readonly policy: SchedulingPolicy
  /** 4 random words: the key of the prefix hash. */
  readonly cacheKey: Int32Array
  /** Smallest chunk a prompt is cut into while others wait, tokens. */
  readonly minChunk?: number
  readonly maxPartialPrefills?: number
}

export interface SchedulerStats {
  running: number
  waiting: number
  preemptions: number
  droppedTokens: number
  /** Prompt tokens looked up in, and found in, the prefix cache. */
  prefixQueries: number
  prefixHits: number
}

/** The chunk granted so far leaves some of its prompt for later steps. */
function isPartial(sequence: Sequence): boolean {
  return sequence.numComputed + sequence.chunk < computeTarget(sequence)
}

/** A prompt that found too few blocks is looked up again when more are available, or after this many steps. */
const RETRY_STEPS = 16

export class Scheduler {
  readonly config: SchedulerConfig
  readonly blocks: BlockPool
  readonly prefixCache: PrefixCache
  readonly #projection: BlockProjection
  readonly #minChunk: number
  readonly #maxPartialPrefills: number

  /** In order of arrival. */
  readonly #waiting: Sequence[] = []
  /** In order of arrival; considered before #waiting. */
  readonly #preempted: Sequence[] = []
  /** In order of admission; those that have left are dropped at the next plan. */
  readonly #running: Sequence[] = []
  /** Ending or preempting: wait for steps in flight to settle. */
  readonly #departing: Sequence[] = []
  readonly #freeSlots: number[] = []
  readonly #freePlans: StepPlan[] = []
  /** Of the step being planned: sequences that compute more than one token. */
  readonly #prefills: Sequence[] = []
  readonly #candidates: Sequence[] = []
  #tokensLeft = 0
  #rowsLeft = 0
  /** Of #prefills: those that this step does not complete. */
  #numPartial = 0
  #nextStep = 0
  #numRunning = 0
  #preemptions = 0
  #droppedTokens = 0
  #prefixQueries = 0
  #prefixHits = 0

  constructor(config: SchedulerConfig) {
    if (config.maxNumBatchedTokens < config.maxNumSeqs || config.maxRows < config.maxNumSeqs)
      throw new EngineError(
        'ERR_USAGE',
        `maxNumSeqs ${config.maxNumSeqs} exceeds the tokens (${config.maxNumBatchedTokens}) or rows (${config.maxRows}) of a step; lower it`,
      )
    this.config = config
    this.blocks = new BlockPool(config.numBlocks)
    this.prefixCache = new PrefixCache(this.blocks, config.blockSize, config.cacheKey)
    this.#projection = new BlockProjection(config.blockSize)
    this.#minChunk = config.minChunk ?? 256
    this.#maxPartialPrefills = config.maxPartialPrefills ?? 4
    for (let slot = config.numSlots - 1; slot >= 0; slot--) this.#freeSlots.push(slot)
  }

  /** Sequences that have not ended, in flight ones included. */
  get numUnfinished(): number {
    return this.#numRunning + this.#waiting.length + this.#preempted.length + this.#departing.length
  }

  get numFreeSlots(): number {
    return this.#freeSlots.length
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
    const { maxModelLen, maxNumSeqs, numBlocks, blockSize, maxWaiting } = this.config
    if (sequence.maxLen > maxModelLen)
      throw new EngineError(
        'ERR_CONTEXT_LENGTH',
        `${sequence.promptLen} prompt tokens and up to ${sequence.maxLen - sequence.promptLen} generated ones exceed the context of ${maxModelLen}; shorten the prompt or lower maxTokens`,
      )
    const needed = Math.ceil(finalTarget(sequence) / blockSize)
    if (needed > numBlocks)
      throw new EngineError(
        'ERR_KV_EXHAUSTED',
        `${sequence.maxLen} tokens need ${needed} KV blocks and there are ${numBlocks}; lower maxTokens or raise kvCacheBytes`,
      )
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
    this.#tokensLeft = this.config.maxNumBatchedTokens
    this.#rowsLeft = this.config.maxRows
    const stalled = this.#planDecodes(plan, nowMs)
    this.#tokensLeft = Math.min(
      this.#tokensLeft,
      this.config.policy.tokenBudget({
        maxNumBatchedTokens: this.config.maxNumBatchedTokens,
        numDecodes: plan.numSeqs,
      }) - plan.numTokens,
    )
    this.#continuePrefills()
    if (!preempted && !stalled) this.#admitAll(nowMs)
    this.#extendPrefills()
    for (let i = 0; i < this.#prefills.length; i++) {
      const sequence = this.#prefills[i]
      if (sequence.chunk > 0) this.#append(plan, sequence, sequence.chunk, nowMs)
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
      if (this.config.prefixCache) this.#enterBlocks(sequence)
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
      if (this.#needsBlock(this.#running[i])) needed++
    }
    if (needed <= this.blocks.numAvailable) return false
    let coming = 0
    for (const sequence of this.#departing) coming += this.#ownBlocks(sequence)
    const candidates = this.#candidates
    candidates.length = 0
    for (const sequence of this.#running) {
      if (this.#isExhausted(sequence)) coming += this.#ownBlocks(sequence)
      else candidates.push(sequence)
    }
    let preempted = false
    while (needed > this.blocks.numAvailable + coming && candidates.length > 0) {
      const index = this.config.policy.victim(candidates)
      const victim = candidates[index]
      candidates.splice(index, 1)
      if (this.#needsBlock(victim)) needed--
      if (victim.inFlight > 0) coming += this.#ownBlocks(victim)
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
      if (this.#needsBlock(sequence)) {
        const block = this.blocks.allocate()
        if (block < 0) {
          recordDecision(sequence, 'stalled_blocks', plan.id)
          stalled = true
          continue
        }
        sequence.blocks[sequence.numBlocks++] = block
      }
      this.#tokensLeft--
      this.#rowsLeft--
      this.#append(plan, sequence, 1, nowMs)
    }
    return stalled
  }

  /** Shares the budget among prompts begun already, and one that may be admitted. */
  #continuePrefills(): void {
    const prefills = this.#prefills
    let sharers = prefills.length
    if (this.#hasWaiting() && sharers < this.#maxPartialPrefills) sharers++
    this.#numPartial = 0
    for (let i = 0; i < prefills.length; i++) {
      prefills[i].chunk = 0
      this.#grant(prefills[i], this.#share(sharers--))
      if (isPartial(prefills[i])) this.#numPartial++
    }
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
      const sharers = this.#hasWaiting() && this.#numPartial + 1 < this.#maxPartialPrefills ? 2 : 1
      this.#prefills.push(candidate)
      candidate.chunk = 0
      this.#grant(candidate, this.#share(sharers))
      if (isPartial(candidate)) this.#numPartial++
    }
  }

  /** What is left after admission goes to prompts in order of admission. */
  #extendPrefills(): void {
    for (let i = 0; i < this.#prefills.length && this.#tokensLeft > 0; i++)
      this.#grant(this.#prefills[i], this.#tokensLeft)
  }

  #share(sharers: number): number {
    return Math.max(this.#minChunk, Math.floor(this.#tokensLeft / sharers))
  }

  /** Adds up to `tokens` to a prompt's chunk, within the token and row budgets. */
  #grant(sequence: Sequence, tokens: number): void {
    const remaining = computeTarget(sequence) - sequence.numComputed - sequence.chunk
    let granted = Math.min(tokens, remaining, this.#tokensLeft)
    if (granted <= 0) return
    if (sequence.kind !== 'generate') {
      // Leave rows for the prompts beside it to sample their first token.
      if (this.#rowsLeft <= 0) return
      granted = Math.min(granted, Math.max(1, this.#rowsLeft - this.#maxPartialPrefills))
      this.#rowsLeft -= granted
    } else if (granted === remaining) {
      if (this.#rowsLeft > 0) this.#rowsLeft--
      else granted--
    }
    sequence.chunk += granted
    this.#tokensLeft -= granted
  }

  /** Makes a waiting sequence run, blocks for all its tokens included; or says why not. */
  #tryAdmit(sequence: Sequence): AdmissionRefusal | undefined {
    if (this.#running.length >= this.config.maxNumSeqs) return 'wait_max_seqs'
    if (this.#numPartial >= this.#maxPartialPrefills) return 'wait_prefill_backlog'
    if (this.#tokensLeft <= 0 || this.#rowsLeft <= 0) return 'wait_budget'
    const needsSlot = sequence.kind === 'generate' && sequence.slot < 0
    if (needsSlot && this.#freeSlots.length === 0) return 'wait_slot'

    const { blockSize, prefixCache } = this.config
    const available = this.blocks.numAvailable
    const alone = this.blocks.numUsed === 0
    if (
      sequence.refusal !== undefined &&
      !alone &&
      available <= sequence.refusedAvailable &&
      this.#nextStep < sequence.refusedStep + RETRY_STEPS
    )
      return sequence.refusal

    const target = computeTarget(sequence)
    if (sequence.blocks.length === 0)
      sequence.blocks = new Int32Array(Math.ceil(finalTarget(sequence) / blockSize))
    const hits =
      prefixCache && sequence.readsCache
        ? this.prefixCache.match(sequence.cacheChain, sequence.tokens, target - 1, sequence.blocks)
        : 0
    // Hits on cached blocks have left the available ones by now, like those still to allocate.
    const needed = Math.ceil(target / blockSize) - hits
    const verdict = this.config.policy.admission({
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
    sequence.numBlocks = hits
    if (verdict !== 'admit') {
      this.#releaseBlocks(sequence)
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
    for (let i = 0; i < needed; i++) sequence.blocks[sequence.numBlocks++] = this.blocks.allocate()
    sequence.numHitBlocks = hits
    sequence.numEntered = hits
    sequence.numComputed = hits * blockSize
    sequence.numSettled = sequence.numComputed
    sequence.refusal = undefined
    if (needsSlot) sequence.slot = this.#freeSlots.pop() as number
    recordDecision(
      sequence,
      sequence.state === 'preempted' ? 'resumed' : 'admitted',
      this.#nextStep,
    )
    if (sequence.state === 'waiting' && sequence.readsCache && prefixCache) {
      sequence.numCachedTokens = sequence.numComputed
      this.#prefixQueries += sequence.promptLen
      this.#prefixHits += sequence.numComputed
    }
    if (hits > 0) recordDecision(sequence, 'prefix_hit', this.#nextStep)
    sequence.state = 'running'
    this.#running.push(sequence)
    this.#numRunning++
    return undefined
  }

  #append(plan: StepPlan, sequence: Sequence, count: number, nowMs: number): void {
    const i = plan.numSeqs++
    const samples =
      sequence.kind === 'generate' && sequence.numComputed + count === sequence.numTokens
    const rows = sequence.kind === 'generate' ? (samples ? 1 : 0) : count
    const reason: Reason = count === 1 && sequence.numComputed > 0 ? 'decode' : 'prefill'
    recordDecision(sequence, reason, plan.id)
    plan.seqs[i] = sequence
    plan.starts[i] = sequence.numComputed
    plan.counts[i] = count
    plan.firstRows[i] = plan.numRows
    plan.rowCounts[i] = rows
    plan.samples[i] = samples ? 1 : 0
    plan.isFirst[i] = sequence.firstPlannedMs < 0 ? 1 : 0
    if (sequence.firstPlannedMs < 0) sequence.firstPlannedMs = nowMs
    plan.numRows += rows
    plan.numTokens += count
    sequence.numComputed += count
    if (samples) sequence.numTokens++
    sequence.inFlight++
  }

  // ---- blocks and slots ----

  /** It has caught up, and its next token begins a block. */
  #needsBlock(sequence: Sequence): boolean {
    return (
      sequence.numComputed === sequence.numBlocks * this.config.blockSize &&
      computeTarget(sequence) > sequence.numComputed
    )
  }

  /** Everything it will ever compute is planned. */
  #isExhausted(sequence: Sequence): boolean {
    return (
      computeTarget(sequence) === sequence.numComputed &&
      (sequence.kind !== 'generate' || sequence.numTokens === sequence.maxLen)
    )
  }

  /** Blocks that become available when it lets go. */
  #ownBlocks(sequence: Sequence): number {
    let own = 0
    for (let i = 0; i < sequence.numBlocks; i++)
      if (this.blocks.refCount(sequence.blocks[i]) === 1) own++
    return own
  }

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
    this.#releaseBlocks(sequence)
    sequence.numComputed = 0
    sequence.numSettled = 0
    sequence.state = 'preempted'
    let at = this.#preempted.length
    while (at > 0 && this.#preempted[at - 1].id > sequence.id) at--
    this.#preempted.splice(at, 0, sequence)
  }

  #free(sequence: Sequence): void {
    this.#releaseBlocks(sequence)
    if (sequence.slot >= 0) this.#freeSlots.push(sequence.slot)
    sequence.slot = -1
    sequence.state = 'ended'
  }

  /** Back to the pool, last block first. */
  #releaseBlocks(sequence: Sequence): void {
    for (let i = sequence.numBlocks - 1; i >= 0; i--) this.blocks.release(sequence.blocks[i])
    sequence.numBlocks = 0
    sequence.numHitBlocks = 0
    sequence.numEntered = 0
    sequence.cacheChain.set(sequence.cacheRoot)
  }

  /** Full blocks of confirmed tokens whose KV is written become findable. */
  #enterBlocks(sequence: Sequence): void {
    const { blockSize } = this.config
    const sure = Math.min(sequence.numSettled, sequence.numConfirmed)
    while ((sequence.numEntered + 1) * blockSize <= sure) {
      const index = sequence.numEntered++
      this.prefixCache.enter(
        sequence.cacheChain,
        sequence.tokens,
        index * blockSize,
        sequence.blocks[index],
      )
    }
  }

  #hasWaiting(): boolean {
    return this.#preempted.length > 0 || this.#waiting.length > 0
  }
}
