/**
 * Chunks of choices that cannot be sent yet: their stream is not open, or its client is behind. Those
 * of one choice come out as one, so that a slow client costs no more memory than its output.
 */

import { mergeChunks } from '../engine/stream.ts'
import type { GenerateChunk } from '../engine/types.ts'

export class HeldChunks {
  readonly #chunks = new Map<number, GenerateChunk[]>()

  get isEmpty(): boolean {
    return this.#chunks.size === 0
  }

  add(index: number, chunk: GenerateChunk): void {
    const held = this.#chunks.get(index)
    if (held === undefined) this.#chunks.set(index, [chunk])
    else held.push(chunk)
  }

  /** Gives one chunk of each choice to `take`. */
  release(take: (index: number, chunk: GenerateChunk) => void): void {
    const held = [...this.#chunks]
    this.#chunks.clear()
    for (const [index, chunks] of held) take(index, mergeChunks(chunks))
  }
}
