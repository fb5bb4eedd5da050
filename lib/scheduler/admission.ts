/**
 * Admission: makes a sequence whose turn it is run, blocks for all its tokens included, or says why
 * not. Pins of the prefix cache are broken before anybody waits for their blocks.
 */

import { EngineError } from '../errors.ts'
import type { SchedulerConfig } from './config.ts'
import type { SequenceMemory } from './memory.ts'
import type { StepPlan } from './plan.ts'
import type { AdmissionRefusal, Reason } from './policy.ts'
import type { BlockProjection } from './projection.ts'
import { donorOf, recordDecision, type Sequence } from './sequence.ts'
import type { SwapSpace } from './swap.ts'

/** A prompt that found too few blocks is looked up again when more are available, or after this many steps. */
const RETRY_STEPS = 16

export class Admission {
  readonly #config: SchedulerConfig
  readonly #memory: SequenceMemory
  readonly #projection: BlockProjection
  readonly #swap: SwapSpace
  #prefixQueries = 0
  #prefixHits = 0

  constructor(
    config: SchedulerConfig,
    memory: SequenceMemory,
    projection: BlockProjection,
    swap: SwapSpace,
  ) {
    this.#config = config
    this.#memory = memory
    this.#projection = projection
    this.#swap = swap
  }

  /** Prompt tokens looked up in the prefix cache. */
  get prefixQueries(): number {
    return this.#prefixQueries
  }
  get prefixHits(): number {
    return this.#prefixHits
  }

  /**
   * Undefined: it holds its blocks and its slot now, and what they hold counts as computed. `reason`:
   * what `explain` says then.
   */
  tryAdmit(
    sequence: Sequence,
    running: readonly Sequence[],
    plan: StepPlan,
    reason: Reason,
  ): AdmissionRefusal | undefined {
    const memory = this.#memory
    const needsSlot = sequence.kind === 'generate' && sequence.slot < 0
    if (needsSlot && memory.numFreeSlots === 0) return 'wait_slot'
    if (this.#isStillRefused(sequence, plan.id)) return sequence.refusal

    const donor = sequence.state === 'waiting' ? donorOf(sequence) : undefined
    let verdict = this.#takeBlocks(sequence, donor, running, plan)
    while (verdict !== undefined && memory.pins.breakOldest())
      verdict = this.#takeBlocks(sequence, donor, running, plan)
    if (verdict !== undefined) {
      sequence.refusal = verdict
      sequence.refusedStep = plan.id
      sequence.refusedAvailable = memory.pool.numAvailable
      return verdict
    }
    sequence.refusal = undefined
    recordDecision(sequence, reason, plan.id)
    if (needsSlot) memory.takeSlot(sequence)
    if (donor !== undefined) {
      sequence.numCachedTokens = sequence.numComputed
      recordDecision(sequence, 'forked', plan.id)
      return undefined
    }
    if (sequence.state === 'waiting' && memory.readsCache(sequence)) {
      sequence.numCachedTokens = sequence.numComputed
      this.#prefixQueries += sequence.promptLen
      this.#prefixHits += sequence.numComputed
    }
    if (sequence.numHitBlocks > 0) recordDecision(sequence, 'prefix_hit', plan.id)
    if (sequence.hostCount > 0) {
      this.#swap.swapIn(sequence, sequence.numHitBlocks, plan)
      recordDecision(sequence, 'swapped_in', plan.id)
    }
    return undefined
  }

  #isStillRefused(sequence: Sequence, step: number): boolean {
    const { pool, pins } = this.#memory
    return (
      sequence.refusal !== undefined &&
      pool.numUsed > 0 &&
      // One that was added since then has to give way.
      pins.numPins === 0 &&
      pool.numAvailable <= sequence.refusedAvailable &&
      step < sequence.refusedStep + RETRY_STEPS
    )
  }

  /** Takes all its blocks, or none and says why. */
  #takeBlocks(
    sequence: Sequence,
    donor: Sequence | undefined,
    running: readonly Sequence[],
    plan: StepPlan,
  ): AdmissionRefusal | undefined {
    const memory = this.#memory
    const { pool } = memory
    const { numBlocks, policy } = this.#config
    const available = pool.numAvailable
    const alone = pool.numUsed === 0
    const needed =
      donor === undefined ? memory.takeCached(sequence) : memory.takeShared(sequence, donor)
    const verdict = policy.admission.decide({
      // Cached blocks it has just taken were available before, like those it still needs.
      neededBlocks: needed + (available - pool.numAvailable),
      availableBlocks: available,
      totalBlocks: numBlocks,
      projectedPeakBlocks: this.#projection.peak(running, sequence, pool.numUsed, needed),
      alone,
    })
    if (verdict !== 'admit') {
      memory.releaseBlocks(sequence)
      return verdict
    }
    if (needed > pool.numAvailable)
      throw new EngineError(
        'ERR_INTERNAL',
        `policy ${policy.admission.name} admitted a sequence that needs ${needed} blocks with ${pool.numAvailable} available`,
      )
    if (donor === undefined) memory.takeRest(sequence, needed)
    else memory.takeForked(sequence, donor, plan)
    return undefined
  }
}
