/**
 * HostBlocks: which blocks of the host's KV region hold swapped-out sequences. A sequence takes one
 * contiguous group, so that its copies are few and large. First fit over free extents in ascending
 * order; neighbours merge when a group comes back.
 */

export class HostBlocks {
  readonly numBlocks: number
  readonly #starts: number[] = []
  readonly #counts: number[] = []
  #numFree: number

  constructor(numBlocks: number) {
    this.numBlocks = numBlocks
    this.#numFree = numBlocks
    if (numBlocks > 0) {
      this.#starts.push(0)
      this.#counts.push(numBlocks)
    }
  }

  get numFree(): number {
    return this.#numFree
  }
  get numUsed(): number {
    return this.numBlocks - this.#numFree
  }

  /** First block of a group of `count` ≥ 1; -1: no extent is long enough. */
  allocate(count: number): number {
    const at = this.#counts.findIndex((free) => free >= count)
    if (at < 0) return -1
    const start = this.#starts[at]
    this.#numFree -= count
    if (this.#counts[at] === count) {
      this.#starts.splice(at, 1)
      this.#counts.splice(at, 1)
    } else {
      this.#starts[at] += count
      this.#counts[at] -= count
    }
    return start
  }

  release(start: number, count: number): void {
    const next = this.#starts.findIndex((other) => other > start)
    const at = next < 0 ? this.#starts.length : next
    const touchesPrevious = at > 0 && this.#starts[at - 1] + this.#counts[at - 1] === start
    const touchesNext = at < this.#starts.length && start + count === this.#starts[at]
    this.#numFree += count
    if (touchesPrevious && touchesNext) {
      this.#counts[at - 1] += count + this.#counts[at]
      this.#starts.splice(at, 1)
      this.#counts.splice(at, 1)
    } else if (touchesPrevious) {
      this.#counts[at - 1] += count
    } else if (touchesNext) {
      this.#starts[at] = start
      this.#counts[at] += count
    } else {
      this.#starts.splice(at, 0, start)
      this.#counts.splice(at, 0, count)
    }
  }
}
