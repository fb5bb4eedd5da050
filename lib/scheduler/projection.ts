/**
 * How many KV blocks will be in use at the worst moment to come, if outputs grow as expected: each
 * running sequence by the mean output length seen so far, or less where its limit is nearer, and
 * gives its blocks back at its end (after LightLLM's past-future scheduler). Remaining lengths are put
 * into buckets, so that a projection costs one pass over the running set and no sort.
 */

import type { Sequence } from './sequence.ts'

const NUM_BUCKETS = 32
/** Expected output before any has been seen, tokens. */
const PRIOR_OUTPUT = 128
/** Weight of the latest output in the running mean. */
const SMOOTHING = 0.1

export class BlockProjection {
  readonly #blockSize: number
  readonly #counts = new Int32Array(NUM_BUCKETS)
  /** Blocks that no other sequence shares, per bucket. */
  readonly #blocks = new Int32Array(NUM_BUCKETS)
  #meanOutput = PRIOR_OUTPUT

  constructor(blockSize: number) {
    this.#blockSize = blockSize
  }

  /** Expected length of an output, tokens. */
  get meanOutput(): number {
    return this.#meanOutput
  }

  observeOutput(numTokens: number): void {
    this.#meanOutput += SMOOTHING * (numTokens - this.#meanOutput)
  }

  /** `used`: blocks in use now; `needed`: those the candidate adds at once. */
  peak(running: readonly Sequence[], candidate: Sequence, used: number, needed: number): number {
    const mean = Math.max(1, this.#meanOutput)
    this.#counts.fill(0)
    this.#blocks.fill(0)
    for (let i = 0; i < running.length; i++) {
      const sequence = running[i]
      const bucket = this.#bucket(sequence, mean)
      this.#counts[bucket]++
      this.#blocks[bucket] += sequence.numBlocks - sequence.numHitBlocks
    }
    const own = this.#bucket(candidate, mean)
    this.#counts[own]++
    this.#blocks[own] += needed

    // At the end of bucket b's time, everything in earlier buckets has ended.
    let growing = running.length + 1
    let held = used + needed
    let peak = held
    for (let b = 0; b < NUM_BUCKETS; b++) {
      const tokens = ((b + 1) * mean) / NUM_BUCKETS
      peak = Math.max(peak, held + (growing * tokens) / this.#blockSize)
      growing -= this.#counts[b]
      held -= this.#blocks[b]
      if (growing === 0) break
    }
    return Math.ceil(peak)
  }

  #bucket(sequence: Sequence, mean: number): number {
    const remaining = Math.min(sequence.maxLen - sequence.numTokens, mean)
    return Math.min(NUM_BUCKETS - 1, Math.floor((remaining * NUM_BUCKETS) / mean))
  }
}
