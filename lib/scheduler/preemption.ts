/**
 * Preemption: takes blocks from running sequences when those that decode run out of them. The victim
 * is the policy's choice; it waits, before all that are new, to be computed again or, where copying
 * costs less and the host has room, to be swapped in.
 */

import type { SchedulerConfig } from './config.ts'
import type { StepCosts } from './costs.ts'
import type { SequenceMemory } from './memory.ts'
import { computeTarget, recordDecision, type Sequence } from './sequence.ts'
import type { SwapSpace } from './swap.ts'

export class Preemption {
  /** In order of arrival. */
  readonly queue: Sequence[] = []
  /** Ending or preempting: wait for steps in flight to settle. */
  readonly departing: Sequence[] = []
  readonly #config: SchedulerConfig
  readonly #memory: SequenceMemory
  readonly #swap: SwapSpace
  readonly #costs: StepCosts
  readonly #candidates: Sequence[] = []
  #count = 0

  constructor(config: SchedulerConfig, memory: SequenceMemory, swap: SwapSpace, costs: StepCosts) {
    this.#config = config
    this.#memory = memory
    this.#swap = swap
    this.#costs = costs
  }

  /** Preemptions so far. */
  get count(): number {
    return this.#count
  }

  /**
   * Preempts until the blocks that caught-up sequences need are there, or will be once steps in
   * flight settle (those sequences then miss a step). Returns how many were preempted.
   */
  makeRoom(running: readonly Sequence[], step: number): number {
    const { pool, pins } = this.#memory
    if (running.length <= pool.numAvailable) return 0
    let needed = 0
    for (const sequence of running) if (this.#memory.needsBlock(sequence)) needed++
    while (needed > pool.numAvailable && pins.breakOldest());
    if (needed <= pool.numAvailable) return 0
    let coming = 0
    for (const sequence of this.departing) coming += this.#memory.ownBlocks(sequence)
    const candidates = this.#candidates
    for (const sequence of running) {
      if (isExhausted(sequence)) coming += this.#memory.ownBlocks(sequence)
      else candidates.push(sequence)
    }
    const before = this.#count
    while (needed > pool.numAvailable + coming && candidates.length > 0) {
      const [victim] = candidates.splice(this.#config.policy.victim.pick(candidates), 1)
      if (this.#memory.needsBlock(victim)) needed--
      if (victim.inFlight > 0) coming += this.#memory.ownBlocks(victim)
      this.#preempt(victim, step)
    }
    candidates.length = 0
    return this.#count - before
  }

  /** It leaves as soon as no step in flight names it. */
  depart(sequence: Sequence, state: 'ending' | 'preempting'): void {
    sequence.state = state
    this.departing.push(sequence)
  }

  /** No step names the sequence any more: its blocks go back, its tokens wait. */
  requeue(sequence: Sequence, step: number): void {
    if (this.#wantsSwap(sequence) && this.#swap.swapOut(sequence))
      recordDecision(sequence, 'swapped_out', step)
    this.#memory.releaseBlocks(sequence)
    sequence.numComputed = 0
    sequence.numSettled = 0
    sequence.state = 'preempted'
    let at = this.queue.length
    while (at > 0 && this.queue[at - 1].id > sequence.id) at--
    this.queue.splice(at, 0, sequence)
  }

  /** Tokens that its sequences will compute when they come back. */
  get pendingTokens(): number {
    let tokens = 0
    for (const { numTokens, hostTokens } of this.queue) tokens += numTokens - hostTokens
    return tokens
  }

  #preempt(sequence: Sequence, step: number): void {
    recordDecision(sequence, 'preempted', step)
    sequence.numPreemptions++
    this.#count++
    if (sequence.inFlight > 0) this.depart(sequence, 'preempting')
    else this.requeue(sequence, step)
  }

  #wantsSwap(sequence: Sequence): boolean {
    const count = this.#swap.blocksOf(sequence)
    if (count === 0 || count > this.#swap.host.numFree) return false
    const tokens = sequence.numSettled
    const idle = this.#costs.predictMs(0, 0, 0)
    return (
      this.#config.policy.victim.form({
        recomputeMs: this.#costs.predictMs(tokens, (tokens * (tokens + 1)) / 2, 0) - idle,
        copyMs: this.#costs.predictMs(0, 0, 2 * count) - idle,
      }) === 'swap'
    )
  }
}

/** Everything it will ever compute is planned. */
function isExhausted(sequence: Sequence): boolean {
  return (
    computeTarget(sequence) === sequence.numComputed &&
    (sequence.kind !== 'generate' || sequence.numTokens === sequence.maxLen)
  )
}
