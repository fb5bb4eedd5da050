/**
 * GrammarPool: worker threads that write and compile grammars and follow outputs through them. That may
 * take long or never end, so it happens only in a worker that follows nothing; one that takes too
 * long, too much memory or aborts is ended and replaced. A compiled grammar stays in its worker for
 * further requests, up to a number of them, least recently used first out.
 */

import { createHash } from 'node:crypto'
import { EngineError } from '../errors.ts'
import type { Grammar } from './grammar.ts'
import { GrammarWorker, type GrammarWorkerOptions } from './pool-worker.ts'
import { grammarProblem } from './problem.ts'
import type { Matcher } from './types.ts'

export interface GrammarPoolOptions extends GrammarWorkerOptions {
  readonly maxWorkers?: number
}

const MAX_WORKERS = 8
const WAIT_TIMEOUT_MS = 60_000
const MAX_WAITING = 256

interface Waiter {
  readonly key: string
  readonly resolve: (worker: GrammarWorker) => void
  readonly reject: (error: EngineError) => void
}

export class GrammarPool {
  readonly #options: GrammarPoolOptions
  readonly #workers = new Set<GrammarWorker>()
  #waiting: Waiter[] = []
  #isClosed = false

  constructor(options: GrammarPoolOptions) {
    this.#options = options
  }

  /**
   * Compiles the grammar, unless a worker knows it, and begins an output. ERR_USAGE: it cannot be
   * used; ERR_QUEUE_FULL: too many different grammars at once; ERR_ABORTED: `signal` fired while it
   * waited for a worker. `onError`: the output cannot be followed any further; it must not throw.
   */
  async open(
    grammar: Grammar,
    onError: (error: EngineError) => void,
    signal?: AbortSignal,
  ): Promise<Matcher> {
    const key = createHash('sha256')
      .update(JSON.stringify(grammar.specialTokens))
      .update(grammar.source)
      .digest('base64')
    const worker = await this.#workerFor(key, signal)
    try {
      if (!worker.knows(key)) await worker.compile(key, grammar)
      return await worker.follow(key, onError)
    } catch (error) {
      throw withParam(error, grammar.param)
    } finally {
      worker.unreserve()
      this.#serveWaiting()
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    const error = closedError()
    for (const waiter of this.#waiting.splice(0)) waiter.reject(error)
    await Promise.all([...this.#workers].map((worker) => worker.end(error)))
  }

  /** A worker that knows the grammar, else one to compile it in; reserved for the caller. */
  #workerFor(key: string, signal: AbortSignal | undefined): Promise<GrammarWorker> {
    if (this.#isClosed) return Promise.reject(closedError())
    if (signal?.aborted) return Promise.reject(abandonedError())
    const worker = this.#waiting.length === 0 ? this.#choose(key) : undefined
    if (worker !== undefined) return Promise.resolve(worker)
    if (this.#waiting.length >= MAX_WAITING) return Promise.reject(this.#busyError())
    return this.#wait(key, signal)
  }

  #wait(key: string, signal: AbortSignal | undefined): Promise<GrammarWorker> {
    return new Promise((resolve, reject) => {
      const leave = (error: EngineError) => {
        this.#waiting = this.#waiting.filter((other) => other !== waiter)
        waiter.reject(error)
        // It may have been first, before one whose worker is free.
        this.#serveWaiting()
      }
      const onAbort = () => leave(abandonedError())
      const timer = setTimeout(() => leave(this.#busyError()), WAIT_TIMEOUT_MS)
      signal?.addEventListener('abort', onAbort)
      const settle = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
      }
      const waiter: Waiter = {
        key,
        resolve(worker) {
          settle()
          resolve(worker)
        },
        reject(error) {
          settle()
          reject(error)
        },
      }
      this.#waiting.push(waiter)
    })
  }

  #choose(key: string): GrammarWorker | undefined {
    const workers = [...this.#workers]
    const knowing = workers.find((worker) => worker.knows(key) && !worker.isReserved)
    const idle = knowing ?? workers.find((worker) => worker.isIdle)
    const chosen =
      idle ??
      (workers.length < (this.#options.maxWorkers ?? MAX_WORKERS) ? this.#start() : undefined)
    chosen?.reserve()
    return chosen
  }

  #start(): GrammarWorker {
    const worker = new GrammarWorker(this.#options, {
      onIdle: () => this.#serveWaiting(),
      onEnd: () => {
        this.#workers.delete(worker)
        this.#serveWaiting()
      },
    })
    this.#workers.add(worker)
    return worker
  }

  /** In order of arrival: nobody overtakes one that waits for a worker to become idle. */
  #serveWaiting(): void {
    while (this.#waiting.length > 0 && !this.#isClosed) {
      const { key, resolve } = this.#waiting[0]!
      const worker = this.#choose(key)
      if (worker === undefined) return
      this.#waiting.shift()
      resolve(worker)
    }
  }

  #busyError(): EngineError {
    return new EngineError(
      'ERR_QUEUE_FULL',
      `${this.#options.maxWorkers ?? MAX_WORKERS} different grammars are in use already; try again later`,
    )
  }
}

/** What is wrong is the grammar as a whole, where nothing in it has been named. */
function withParam(error: unknown, param: string | undefined): unknown {
  if (!(error instanceof EngineError) || error.code !== 'ERR_USAGE') return error
  return error.param === undefined ? grammarProblem(error.message, param) : error
}

function closedError(): EngineError {
  return new EngineError('ERR_CLOSED', 'the engine is closed')
}

function abandonedError(): EngineError {
  return new EngineError('ERR_ABORTED', 'nobody wants the output any more')
}
