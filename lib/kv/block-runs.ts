/**
 * BlockRuns: KV blocks to copy between device and host, as runs of consecutive blocks {device block,
 * host block, count}. The list is refilled every step without being reallocated.
 */

export const RUN_WORDS = 3

export class BlockRuns {
  #words = new Int32Array(8 * RUN_WORDS)
  #length = 0
  #numBlocks = 0

  /** Runs · RUN_WORDS. */
  get length(): number {
    return this.#length
  }
  get numBlocks(): number {
    return this.#numBlocks
  }

  clear(): void {
    this.#length = 0
    this.#numBlocks = 0
  }

  /** Word `index` of {device, host, count}… */
  word(index: number): number {
    return this.#words[index]
  }

  /** Copies `blocks[from..to)` from or to the host blocks from `host` on. */
  add(blocks: Int32Array, from: number, to: number, host: number): void {
    for (let i = from; i < to; i++) this.#addBlock(blocks[i], host + i - from)
  }

  /** Drops the runs whose host blocks lie in `[start, start + count)`; groups are never shared. */
  removeHost(start: number, count: number): void {
    let kept = 0
    for (let at = 0; at < this.#length; at += RUN_WORDS) {
      const host = this.#words[at + 1]
      const drops = host >= start && host < start + count
      if (drops) this.#numBlocks -= this.#words[at + 2]
      else {
        this.#words.copyWithin(kept, at, at + RUN_WORDS)
        kept += RUN_WORDS
      }
    }
    this.#length = kept
  }

  copyTo(target: Int32Array, offset: number): void {
    for (let i = 0; i < this.#length; i++) target[offset + i] = this.#words[i]
  }

  /** Moves everything to the end of `other`. */
  moveTo(other: BlockRuns): void {
    for (let at = 0; at < this.#length; at += RUN_WORDS)
      other.#addRun(this.#words[at], this.#words[at + 1], this.#words[at + 2])
    this.clear()
  }

  #addBlock(device: number, host: number): void {
    const last = this.#length - RUN_WORDS
    const words = this.#words
    const count = last >= 0 ? words[last + 2] : 0
    if (count > 0 && words[last] + count === device && words[last + 1] + count === host) {
      words[last + 2]++
      this.#numBlocks++
    } else {
      this.#addRun(device, host, 1)
    }
  }

  #addRun(device: number, host: number, count: number): void {
    if (this.#length === this.#words.length) {
      const grown = new Int32Array(2 * this.#words.length)
      grown.set(this.#words)
      this.#words = grown
    }
    this.#words[this.#length++] = device
    this.#words[this.#length++] = host
    this.#words[this.#length++] = count
    this.#numBlocks += count
  }
}
