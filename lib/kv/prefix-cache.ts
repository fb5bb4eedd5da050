/**
 * PrefixCache: finds the KV blocks of a prefix computed before. A full block is known by a chained
 * 128-bit hash over (hash of the blocks before it, its tokens); the chain starts from the model and
 * the request's salt. The hash is keyed, and a block's token ids are compared on a hit.
 *
 * Content stays findable while its block is used or waits on the pool's free list; the pool says
 * when it is evicted. Nothing is allocated per call: hashes, tokens and the table are flat arrays.
 */

import type { BlockPool } from './block-pool.ts'
import { sipHash128 } from './siphash.ts'

/** Words of a hash. */
export const HASH_WORDS = 4

/** What is known about how much of a sequence the cache holds; see PrefixCache.probe. */
export interface PrefixProbe {
  readonly root: Int32Array
  /** [blocks, HASH_WORDS]; empty until looked up. */
  hashes: Int32Array
  numHashed: number
  /** Whole blocks found, from the first on. */
  numFound: number
}

export class PrefixCache {
  readonly #pool: BlockPool
  readonly #blockSize: number
  readonly #key: Int32Array
  /** [numBlocks, 4] hash of the content of each cached block. */
  readonly #hashes: Int32Array
  /** [numBlocks, blockSize] */
  readonly #tokens: Int32Array
  /** Open addressing with linear probing, at most half full: block + 1, 0 empty. */
  readonly #table: Int32Array
  readonly #mask: number
  /** {parent hash, tokens}: what is hashed. */
  readonly #message: Int32Array
  readonly #hash = new Int32Array(HASH_WORDS)

  /** `key`: 4 random words. */
  constructor(pool: BlockPool, blockSize: number, key: Int32Array) {
    this.#pool = pool
    this.#blockSize = blockSize
    this.#key = key
    this.#hashes = new Int32Array(pool.numBlocks * HASH_WORDS)
    this.#tokens = new Int32Array(pool.numBlocks * blockSize)
    let capacity = 16
    while (capacity < pool.numBlocks * 2) capacity *= 2
    this.#table = new Int32Array(capacity)
    this.#mask = capacity - 1
    this.#message = new Int32Array(HASH_WORDS + blockSize)
    pool.onEvict((block) => this.evict(block))
  }

  /** The hash a chain starts from. Equal only for equal model and salt. */
  root(model: string, salt: string): Int32Array {
    const encoder = new TextEncoder()
    const names = [encoder.encode(model), encoder.encode(salt)]
    const words: number[] = []
    for (const bytes of names) {
      words.push(bytes.length)
      for (let i = 0; i < bytes.length; i += 4)
        words.push(
          bytes[i] |
            ((bytes[i + 1] ?? 0) << 8) |
            ((bytes[i + 2] ?? 0) << 16) |
            ((bytes[i + 3] ?? 0) << 24),
        )
    }
    const hash = new Int32Array(HASH_WORDS)
    sipHash128(this.#key, Int32Array.from(words), words.length, hash)
    return hash
  }

  /**
   * Finds the longest run of whole blocks within `tokens[0..limit)`, writes and retains them in
   * `blocks`, and leaves the hash of the last one in `chain` (given: the root). Returns how many.
   */
  match(chain: Int32Array, tokens: Int32Array, limit: number, blocks: Int32Array): number {
    const hash = this.#hash
    const most = Math.floor(limit / this.#blockSize)
    let found = 0
    for (; found < most; found++) {
      this.#advance(chain, tokens, found * this.#blockSize)
      const block = this.#find(hash)
      if (block < 0 || !this.#holds(block, tokens, found * this.#blockSize)) break
      this.#pool.retain(block)
      blocks[found] = block
      chain.set(hash)
    }
    return found
  }

  /**
   * Looks up how far `tokens[0..limit)` are known, without taking anything, and leaves it in `probe`,
   * from which the next look-up goes on. Hashes at most `maxHashes` blocks and returns how many it did.
   * Token ids are not compared: this is for ordering, `match` decides.
   */
  probe(probe: PrefixProbe, tokens: Int32Array, limit: number, maxHashes: number): number {
    const most = Math.floor(limit / this.#blockSize)
    while (probe.numFound > 0 && this.#find(probe.hashes, probe.numFound - 1) < 0) probe.numFound--
    let hashed = 0
    while (probe.numFound < most) {
      if (probe.numFound === probe.numHashed) {
        if (hashed === maxHashes) break
        this.#hashNext(probe, tokens, most)
        hashed++
      }
      if (this.#find(probe.hashes, probe.numFound) < 0) break
      probe.numFound++
    }
    return hashed
  }

  #hashNext(probe: PrefixProbe, tokens: Int32Array, most: number): void {
    if (probe.hashes.length === 0) probe.hashes = new Int32Array(most * HASH_WORDS)
    const index = probe.numHashed++
    const from = (index - 1) * HASH_WORDS
    const chain = index === 0 ? probe.root : probe.hashes.subarray(from, from + HASH_WORDS)
    this.#advance(chain, tokens, index * this.#blockSize)
    probe.hashes.set(this.#hash, index * HASH_WORDS)
  }

  /**
   * Makes `block`, which holds `tokens[offset..offset + blockSize)` after the prefix `chain` stands
   * for, findable, and moves `chain` on. Where equal content is cached already, that one stays.
   */
  enter(chain: Int32Array, tokens: Int32Array, offset: number, block: number): void {
    const hash = this.#hash
    this.#advance(chain, tokens, offset)
    chain.set(hash)
    if (this.#find(hash) >= 0) return
    this.#hashes.set(hash, block * HASH_WORDS)
    const start = block * this.#blockSize
    for (let i = 0; i < this.#blockSize; i++) this.#tokens[start + i] = tokens[offset + i]
    let at = hash[0] & this.#mask
    while (this.#table[at] !== 0) at = (at + 1) & this.#mask
    this.#table[at] = block + 1
    this.#pool.markCached(block)
  }

  /** #hash = hash(chain, tokens of one block). */
  #advance(chain: Int32Array, tokens: Int32Array, offset: number): void {
    const message = this.#message
    for (let i = 0; i < HASH_WORDS; i++) message[i] = chain[i]
    for (let i = 0; i < this.#blockSize; i++) message[HASH_WORDS + i] = tokens[offset + i]
    sipHash128(this.#key, message, message.length, this.#hash)
  }

  /** The block whose content has hash `index` of `hashes`, or -1. */
  #find(hashes: Int32Array, index = 0): number {
    const own = index * HASH_WORDS
    for (let at = hashes[own] & this.#mask; this.#table[at] !== 0; at = (at + 1) & this.#mask) {
      const block = this.#table[at] - 1
      const base = block * HASH_WORDS
      if (
        this.#hashes[base] === hashes[own] &&
        this.#hashes[base + 1] === hashes[own + 1] &&
        this.#hashes[base + 2] === hashes[own + 2] &&
        this.#hashes[base + 3] === hashes[own + 3]
      )
        return block
    }
    return -1
  }

  #holds(block: number, tokens: Int32Array, offset: number): boolean {
    const start = block * this.#blockSize
    for (let i = 0; i < this.#blockSize; i++)
      if (this.#tokens[start + i] !== tokens[offset + i]) return false
    return true
  }

  /** Forgets a cached block's content. The pool calls it; later entries shift back into the hole. */
  evict(block: number): void {
    let hole = this.#hashes[block * HASH_WORDS] & this.#mask
    while (this.#table[hole] !== block + 1) hole = (hole + 1) & this.#mask
    for (let at = (hole + 1) & this.#mask; this.#table[at] !== 0; at = (at + 1) & this.#mask) {
      const home = this.#hashes[(this.#table[at] - 1) * HASH_WORDS] & this.#mask
      // The entry may move into the hole unless its home lies cyclically within (hole, at].
      if (((at - home) & this.#mask) >= ((at - hole) & this.#mask)) {
        this.#table[hole] = this.#table[at]
        hole = at
      }
    }
    this.#table[hole] = 0
  }
}
