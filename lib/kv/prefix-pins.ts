/**
 * PrefixPins: blocks of ended sequences that stay in the prefix cache for a while, because their
 * conversation is expected to go on (a tool is being called). A pin holds its blocks as a sequence
 * does. Pins expire, take a bounded share of the pool, and are broken, oldest first, when blocks run
 * out: they never cost a running sequence anything.
 */

import type { BlockPool } from './block-pool.ts'

interface Pin {
  readonly blocks: Int32Array
  readonly expiresMs: number
}

/** Part of the pool that pins may hold. */
const MAX_SHARE = 0.25

export class PrefixPins {
  readonly #pool: BlockPool
  readonly #maxBlocks: number
  /** Oldest first. */
  readonly #pins: Pin[] = []
  #numBlocks = 0

  constructor(pool: BlockPool) {
    this.#pool = pool
    this.#maxBlocks = Math.floor(pool.numBlocks * MAX_SHARE)
  }

  /** Blocks held, those of several pins counted for each. */
  get numBlocks(): number {
    return this.#numBlocks
  }
  get numPins(): number {
    return this.#pins.length
  }

  /** Holds `blocks[0..count)`, which are in use, until `expiresMs`. False: more than pins may hold. */
  add(blocks: Int32Array, count: number, expiresMs: number): boolean {
    if (count === 0 || count > this.#maxBlocks) return false
    while (this.#numBlocks + count > this.#maxBlocks) this.breakOldest()
    const pinned = blocks.slice(0, count)
    for (const block of pinned) this.#pool.retain(block)
    this.#pins.push({ blocks: pinned, expiresMs })
    this.#numBlocks += count
    return true
  }

  expire(nowMs: number): void {
    for (let i = this.#pins.length - 1; i >= 0; i--)
      if (this.#pins[i].expiresMs <= nowMs) this.#remove(i)
  }

  /** False: there is no pin. */
  breakOldest(): boolean {
    if (this.#pins.length === 0) return false
    this.#remove(0)
    return true
  }

  #remove(index: number): void {
    const [pin] = this.#pins.splice(index, 1)
    for (let i = pin.blocks.length - 1; i >= 0; i--) this.#pool.release(pin.blocks[i])
    this.#numBlocks -= pin.blocks.length
  }
}
