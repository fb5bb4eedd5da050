/**
 * SwapSpace: KV blocks of preempted sequences that wait on the host. Within a step, copies to the
 * host come first, then copies back, then everything else: device blocks may be handed on in the
 * step that copies them out, and a group may be written and read in one step.
 */

import { BlockRuns } from '../kv/block-runs.ts'
import { HostBlocks } from '../kv/host-blocks.ts'
import type { StepPlan } from './plan.ts'
import type { Sequence } from './sequence.ts'

export class SwapSpace {
  readonly host: HostBlocks
  readonly #blockSize: number
  /** For the next step. */
  readonly #pendingOut = new BlockRuns()
  #numOut = 0
  #numIn = 0

  constructor(numBlocks: number, blockSize: number) {
    this.host = new HostBlocks(numBlocks)
    this.#blockSize = blockSize
  }

  get numSwapsOut(): number {
    return this.#numOut
  }
  get numSwapsIn(): number {
    return this.#numIn
  }

  /** Host blocks that its settled tokens need. */
  blocksOf(sequence: Sequence): number {
    return Math.ceil(sequence.numSettled / this.#blockSize)
  }

  /**
   * Copies the settled tokens of a sequence that no step in flight names with the next step; its
   * blocks may be released at once. False: the host has no room for them in one piece.
   */
  swapOut(sequence: Sequence): boolean {
    const count = this.blocksOf(sequence)
    if (count === 0) return false
    const start = this.host.allocate(count)
    if (start < 0) return false
    this.#pendingOut.add(sequence.blocks, 0, count, start)
    sequence.hostStart = start
    sequence.hostCount = count
    sequence.hostTokens = sequence.numSettled
    this.#numOut++
    return true
  }

  /**
   * Fills the blocks it has just taken, except the first `numHits` ones, with the step `plan`; what
   * they hold counts as computed.
   */
  swapIn(sequence: Sequence, numHits: number, plan: StepPlan): void {
    const { hostStart, hostCount, hostTokens } = sequence
    plan.swapIns.add(sequence.blocks, numHits, hostCount, hostStart + numHits)
    sequence.numComputed = Math.max(sequence.numComputed, hostTokens)
    sequence.numSettled = sequence.numComputed
    this.#release(sequence)
    this.#numIn++
  }

  /** It will not come back. */
  drop(sequence: Sequence): void {
    if (sequence.hostCount === 0) return
    this.#pendingOut.removeHost(sequence.hostStart, sequence.hostCount)
    this.#release(sequence)
  }

  /** A step is planned: it does the copies that are due. */
  emit(plan: StepPlan): void {
    this.#pendingOut.moveTo(plan.swapOuts)
  }

  #release(sequence: Sequence): void {
    this.host.release(sequence.hostStart, sequence.hostCount)
    sequence.hostStart = -1
    sequence.hostCount = 0
    sequence.hostTokens = 0
  }
}
