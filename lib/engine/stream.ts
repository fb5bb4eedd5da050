/**
 * ChunkStream: the async iterator a request is read from. Work starts with the first `next()`.
 * Chunks that nobody has asked for yet come as one, so a slow consumer costs no more memory than
 * the output itself; an error waits until it is asked for, and is never unhandled.
 */

import type { GenerateChunk, GenerateStream } from './types.ts'

interface Waiter {
  readonly resolve: (result: IteratorResult<GenerateChunk>) => void
  readonly reject: (error: unknown) => void
}

const DONE: IteratorResult<GenerateChunk> = { done: true, value: undefined }

export class ChunkStream implements GenerateStream {
  readonly #start: () => void
  readonly #cancel: () => void
  #state: 'new' | 'open' | 'ended' = 'new'
  #pending: GenerateChunk[] = []
  #error: { readonly value: unknown } | undefined
  readonly #waiters: Waiter[] = []

  /** `start` is called once, by the first `next()`; `cancel` when the consumer leaves before the end. */
  constructor(start: () => void, cancel: () => void) {
    this.#start = start
    this.#cancel = cancel
  }

  // ---- producer ----

  /** Nothing that is pushed from now on will be read. */
  get isEnded(): boolean {
    return this.#state === 'ended'
  }

  push(chunk: GenerateChunk): void {
    if (this.#state === 'ended') return
    const waiter = this.#waiters.shift()
    if (waiter !== undefined) waiter.resolve({ done: false, value: chunk })
    else this.#pending.push(chunk)
  }

  end(): void {
    this.#state = 'ended'
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(DONE)
  }

  fail(error: unknown): void {
    if (this.#state === 'ended') return
    this.#state = 'ended'
    const [first, ...rest] = this.#waiters.splice(0)
    if (first === undefined) this.#error = { value: error }
    else first.reject(error)
    for (const waiter of rest) waiter.resolve(DONE)
  }

  // ---- consumer ----

  next(): Promise<IteratorResult<GenerateChunk>> {
    if (this.#pending.length > 0) {
      const value = mergeChunks(this.#pending)
      this.#pending = []
      return Promise.resolve({ done: false, value })
    }
    if (this.#error !== undefined) {
      const { value } = this.#error
      this.#error = undefined
      return Promise.reject(value)
    }
    if (this.#state === 'ended') return Promise.resolve(DONE)
    const result = new Promise<IteratorResult<GenerateChunk>>((resolve, reject) => {
      this.#waiters.push({ resolve, reject })
    })
    if (this.#state === 'new') {
      this.#state = 'open'
      this.#start()
    }
    return result
  }

  return(): Promise<IteratorResult<GenerateChunk>> {
    const wasEnded = this.#state === 'ended'
    this.#pending = []
    this.#error = undefined
    this.end()
    if (!wasEnded) this.#cancel()
    return Promise.resolve(DONE)
  }

  throw(error: unknown): Promise<IteratorResult<GenerateChunk>> {
    void this.return()
    return Promise.reject(error)
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}

/** Chunks of one output in their order, at least one, as one chunk. */
export function mergeChunks(chunks: readonly GenerateChunk[]): GenerateChunk {
  const last = chunks[chunks.length - 1]
  if (chunks.length === 1) return last
  const logprobs = chunks.flatMap((chunk) => chunk.logprobs ?? [])
  return {
    ...last,
    text: chunks.map((chunk) => chunk.text).join(''),
    tokens: chunks.flatMap((chunk) => chunk.tokens),
    ...(logprobs.length > 0 && { logprobs }),
  }
}
