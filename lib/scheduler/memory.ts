/**
 * SequenceMemory: which KV blocks and sampling slots sequences hold. Blocks for all known tokens are
 * taken at admission, cached ones first, then one at a time as the output grows; confirmed tokens
 * become findable once the step that wrote their KV has settled.
 */

import { BlockPool } from '../kv/block-pool.ts'
import { PrefixCache } from '../kv/prefix-cache.ts'
import { PrefixPins } from '../kv/prefix-pins.ts'
import type { SchedulerConfig } from './config.ts'
import { addBlockCopy, type StepPlan } from './plan.ts'
import { computeTarget, finalTarget, type Sequence } from './sequence.ts'

export class SequenceMemory {
  readonly pool: BlockPool
  readonly prefixCache: PrefixCache
  readonly pins: PrefixPins
  readonly #blockSize: number
  readonly #usesCache: boolean
  readonly #freeSlots: number[] = []

  constructor(config: SchedulerConfig) {
    this.pool = new BlockPool(config.numBlocks)
    this.prefixCache = new PrefixCache(this.pool, config.blockSize, config.cacheKey)
    this.pins = new PrefixPins(this.pool)
    this.#blockSize = config.blockSize
    this.#usesCache = config.prefixCache
    for (let slot = config.numSlots - 1; slot >= 0; slot--) this.#freeSlots.push(slot)
  }

  get numFreeSlots(): number {
    return this.#freeSlots.length
  }

  readsCache(sequence: Sequence): boolean {
    return this.#usesCache && sequence.readsCache
  }

  takeSlot(sequence: Sequence): void {
    sequence.slot = this.#freeSlots.pop() as number
  }

  /** It has caught up, and its next token begins a block. */
  needsBlock(sequence: Sequence): boolean {
    return (
      sequence.numComputed === sequence.numBlocks * this.#blockSize &&
      computeTarget(sequence) > sequence.numComputed
    )
  }

  /** False: all blocks are used. */
  addBlock(sequence: Sequence): boolean {
    const block = this.pool.allocate()
    if (block < 0) return false
    sequence.blocks[sequence.numBlocks++] = block
    return true
  }

  /**
   * Takes the cached blocks its tokens begin with, at least one token short of all; returns how many
   * blocks it needs beside them.
   */
  takeCached(sequence: Sequence): number {
    const target = computeTarget(sequence)
    if (sequence.blocks.length === 0)
      sequence.blocks = new Int32Array(Math.ceil(finalTarget(sequence) / this.#blockSize))
    const { cacheChain, tokens, blocks } = sequence
    const hits = this.readsCache(sequence)
      ? this.prefixCache.match(cacheChain, tokens, target - 1, blocks)
      : 0
    sequence.numBlocks = hits
    return Math.ceil(target / this.#blockSize) - hits
  }

  /** After takeCached: takes the blocks still needed; what the cached ones hold counts as computed. */
  takeRest(sequence: Sequence, needed: number): void {
    const hits = sequence.numBlocks
    for (let i = 0; i < needed; i++) sequence.blocks[sequence.numBlocks++] = this.pool.allocate()
    sequence.numHitBlocks = hits
    sequence.numEntered = hits
    sequence.numComputed = hits * this.#blockSize
    sequence.numSettled = sequence.numComputed
  }

  /**
   * Like takeCached, from a running sequence with the same prompt (donorOf): takes all blocks before
   * the last prompt token, whose logits it needs.
   */
  takeShared(sequence: Sequence, donor: Sequence): number {
    const shared = Math.floor((sequence.promptLen - 1) / this.#blockSize)
    sequence.blocks = new Int32Array(Math.ceil(finalTarget(sequence) / this.#blockSize))
    for (let i = 0; i < shared; i++) {
      this.pool.retain(donor.blocks[i])
      sequence.blocks[i] = donor.blocks[i]
    }
    sequence.numBlocks = shared
    return Math.ceil(sequence.promptLen / this.#blockSize) - shared
  }

  /**
   * After takeShared: takes a block of its own for the prompt's last tokens. What the donor's holds
   * of them is copied with the step `plan`, before anything is computed.
   */
  takeForked(sequence: Sequence, donor: Sequence, plan: StepPlan): void {
    const shared = sequence.numBlocks
    this.takeRest(sequence, 1)
    const { numComputed } = sequence
    sequence.numEntered = 0
    sequence.numComputed = sequence.promptLen - 1
    sequence.numSettled = sequence.numComputed
    if (sequence.numComputed > numComputed)
      addBlockCopy(plan, donor.blocks[shared], sequence.blocks[shared])
  }

  /** How much of its tokens the cache knows, for ordering; returns the blocks hashed. */
  probe(sequence: Sequence, maxHashes: number): number {
    if (!this.readsCache(sequence)) return 0
    const { probe, tokens, promptLen } = sequence
    const hashed = this.prefixCache.probe(probe, tokens, promptLen - 1, maxHashes)
    sequence.foundTokens = probe.numFound * this.#blockSize
    return hashed
  }

  /** Keeps the blocks of a finished sequence findable for a while. */
  pin(sequence: Sequence, expiresMs: number): boolean {
    return this.#usesCache && this.pins.add(sequence.blocks, sequence.numEntered, expiresMs)
  }

  /** Blocks that become available when it lets go. */
  ownBlocks(sequence: Sequence): number {
    let own = 0
    for (let i = 0; i < sequence.numBlocks; i++)
      if (this.pool.refCount(sequence.blocks[i]) === 1) own++
    return own
  }

  /** Back to the pool, last block first. */
  releaseBlocks(sequence: Sequence): void {
    for (let i = sequence.numBlocks - 1; i >= 0; i--) this.pool.release(sequence.blocks[i])
    sequence.numBlocks = 0
    sequence.numHitBlocks = 0
    sequence.numEntered = 0
    sequence.cacheChain.set(sequence.cacheRoot)
  }

  releaseSlot(sequence: Sequence): void {
    if (sequence.slot >= 0) this.#freeSlots.push(sequence.slot)
    sequence.slot = -1
  }

  /** Full blocks of confirmed tokens whose KV is written become findable. */
  enterBlocks(sequence: Sequence): void {
    if (!this.#usesCache) return
    const sure = Math.min(sequence.numSettled, sequence.numConfirmed)
    while ((sequence.numEntered + 1) * this.#blockSize <= sure) {
      const index = sequence.numEntered++
      const offset = index * this.#blockSize
      const { cacheChain, tokens, blocks } = sequence
      this.prefixCache.enter(cacheChain, tokens, offset, blocks[index])
    }
  }
}
