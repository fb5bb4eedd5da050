/**
 * BlockPool: which KV blocks are free, cached or used. Structure of arrays: reference counts and an
 * intrusive doubly linked free list, ordered by when a block may be taken again. A block is
 *   used    by at least one sequence (count > 0);
 *   cached  by no sequence, but its content may be found again (prefix-cache.ts): on the list;
 *   free    otherwise: on the list, in front of the cached ones.
 * free + cached + used = total, always. Taking a cached block evicts its content.
 */

export class BlockPool {
  readonly numBlocks: number
  /** Sequences that use each block. */
  readonly #refs: Int32Array
  /** 1: the prefix cache knows the block's content. */
  readonly #cached: Uint8Array
  // The free list; entry numBlocks is its sentinel: next = first to be taken, prev = last.
  readonly #next: Int32Array
  readonly #prev: Int32Array
  #numListed: number
  #numListedCached = 0
  /** Told before a cached block is handed out again. */
  #onEvict: (block: number) => void = () => {}

  constructor(numBlocks: number) {
    this.numBlocks = numBlocks
    this.#refs = new Int32Array(numBlocks)
    this.#cached = new Uint8Array(numBlocks)
    this.#next = new Int32Array(numBlocks + 1)
    this.#prev = new Int32Array(numBlocks + 1)
    for (let i = 0; i <= numBlocks; i++) {
      this.#next[i] = i === numBlocks ? 0 : i + 1
      this.#prev[i] = i === 0 ? numBlocks : i - 1
    }
    this.#numListed = numBlocks
  }

  /** Blocks that `allocate` can hand out: free and cached. */
  get numAvailable(): number {
    return this.#numListed
  }
  get numFree(): number {
    return this.#numListed - this.#numListedCached
  }
  get numCached(): number {
    return this.#numListedCached
  }
  get numUsed(): number {
    return this.numBlocks - this.#numListed
  }

  onEvict(callback: (block: number) => void): void {
    this.#onEvict = callback
  }

  refCount(block: number): number {
    return this.#refs[block]
  }

  /** Takes the block that was given back longest ago, free ones first; -1 when all are used. */
  allocate(): number {
    if (this.#numListed === 0) return -1
    const block = this.#next[this.numBlocks]
    if (this.#cached[block] === 1) {
      this.#onEvict(block)
      this.#cached[block] = 0
      this.#numListedCached--
    }
    this.#unlist(block)
    this.#refs[block] = 1
    return block
  }

  /** One more sequence uses the block (a prefix hit). */
  retain(block: number): void {
    if (this.#refs[block]++ === 0) {
      this.#unlist(block)
      if (this.#cached[block] === 1) this.#numListedCached--
    }
  }

  /** One sequence less. Release a sequence's blocks last to first, so that tails are evicted first. */
  release(block: number): void {
    if (this.#refs[block] <= 0) throw new RangeError(`block ${block} is not in use`)
    if (--this.#refs[block] > 0) return
    const sentinel = this.numBlocks
    const after = this.#cached[block] === 1 ? this.#prev[sentinel] : sentinel
    const before = this.#next[after]
    this.#next[after] = block
    this.#prev[block] = after
    this.#next[block] = before
    this.#prev[before] = block
    this.#numListed++
    this.#numListedCached += this.#cached[block]
  }

  /** The prefix cache knows the content of a block in use. */
  markCached(block: number): void {
    this.#cached[block] = 1
  }

  #unlist(block: number): void {
    const next = this.#next[block]
    const prev = this.#prev[block]
    this.#next[prev] = next
    this.#prev[next] = prev
    this.#numListed--
  }
}
