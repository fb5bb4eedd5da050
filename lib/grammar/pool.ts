/**
 * GrammarPool: worker threads that write and compile grammars and follow outputs through them. That may
 * take long or never end, so it happens only in a worker that follows nothing; one that takes too
 * long, too much memory or aborts is ended and replaced. A compiled grammar stays in its worker for
 * further requests, up to a number of them, least recently used first out.
 */

import { createHash } from 'node:crypto'
import { Worker } from 'node:worker_threads'
import { EngineError } from '../errors.ts'
import type { Grammar } from './grammar.ts'
import type { Answer, WorkerData, WorkerMessage, WorkerRequest } from './messages.ts'
import { grammarProblem } from './problem.ts'
import type { Matcher, Vocabulary } from './types.ts'
import { findWorkerCode } from './worker-code.ts'

export interface GrammarPoolOptions {
  readonly vocabulary: Vocabulary
  /** Columns of the logits. */
  readonly vocabSize: number
  readonly maxWorkers?: number
  /** For writing a grammar, and for compiling it. */
  readonly compileTimeoutMs?: number
  /** For one batch of tokens. */
  readonly matchTimeoutMs?: number
}

const MAX_WORKERS = 8
const COMPILE_TIMEOUT_MS = 2_000
const MATCH_TIMEOUT_MS = 2_000
/** Reading a vocabulary of a quarter of a million tokens on a slow machine. */
const PREPARE_TIMEOUT_MS = 60_000
const WAIT_TIMEOUT_MS = 60_000
const MAX_WAITING = 256
/** WebAssembly memory of a worker. */
const MAX_MEMORY_BYTES = 512 << 20
const MAX_CACHED = 16

interface Following {
  readonly onError: (error: EngineError) => void
  onReady: (() => void) | undefined
}

interface Waiter {
  readonly key: string
  readonly resolve: (worker: GrammarWorker) => void
  readonly reject: (error: EngineError) => void
  readonly timer: NodeJS.Timeout
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
   * used; ERR_QUEUE_FULL: too many different grammars at once. `onError`: the output cannot be
   * followed any further.
   */
  async open(grammar: Grammar, onError: (error: EngineError) => void): Promise<Matcher> {
    const key = createHash('sha256')
      .update(JSON.stringify(grammar.specialTokens))
      .update(grammar.source)
      .digest('base64')
    const worker = await this.#workerFor(key)
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
    for (const waiter of this.#waiting.splice(0)) {
      clearTimeout(waiter.timer)
      waiter.reject(error)
    }
    await Promise.all([...this.#workers].map((worker) => worker.end(error)))
  }

  /** A worker that knows the grammar, else one to compile it in; reserved for the caller. */
  #workerFor(key: string): Promise<GrammarWorker> {
    if (this.#isClosed) return Promise.reject(closedError())
    const worker = this.#waiting.length === 0 ? this.#choose(key) : undefined
    if (worker !== undefined) return Promise.resolve(worker)
    if (this.#waiting.length >= MAX_WAITING) return Promise.reject(this.#busyError())
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting = this.#waiting.filter((waiter) => waiter.timer !== timer)
        reject(this.#busyError())
      }, WAIT_TIMEOUT_MS)
      this.#waiting.push({ key, resolve, reject, timer })
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
      const { key, timer, resolve } = this.#waiting[0]!
      const worker = this.#choose(key)
      if (worker === undefined) return
      this.#waiting.shift()
      clearTimeout(timer)
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

interface WorkerEvents {
  /** It follows nothing any more. */
  readonly onIdle: () => void
  readonly onEnd: () => void
}

/** One thread. Asked for one thing at a time, tokens excepted. */
class GrammarWorker {
  readonly #options: GrammarPoolOptions
  readonly #events: WorkerEvents
  readonly #thread: Worker
  readonly #followed = new Map<number, Following>()
  #keys = new Set<string>()
  #tokens: (readonly [id: number, token: number])[] = []
  #nextId = 0
  #isEnded = false
  #isReserved = false
  #prepared: Promise<void> | undefined
  /** Of what is being compiled or prepared. */
  #answer:
    | { readonly resolve: () => void; readonly reject: (error: EngineError) => void }
    | undefined
  #batchesInFlight = 0
  #watch: NodeJS.Timeout | undefined

  constructor(options: GrammarPoolOptions, events: WorkerEvents) {
    this.#options = options
    this.#events = events
    const workerData: WorkerData = {
      vocabulary: options.vocabulary,
      vocabSize: options.vocabSize,
      maxMemoryBytes: MAX_MEMORY_BYTES,
      maxCached: MAX_CACHED,
    }
    this.#thread = new Worker(findWorkerCode(), {
      workerData,
      // What comes with Node's own command line is not for this thread.
      execArgv: ['--no-warnings'],
      resourceLimits: { maxOldGenerationSizeMb: 512 },
    })
    this.#thread.unref()
    this.#thread.on('message', (message) => this.#onMessage(message))
    this.#thread.on('error', (error) => void this.end(internalError(String(error))))
    this.#thread.on('exit', () => void this.end(internalError('its thread ended')))
  }

  get isReserved(): boolean {
    return this.#isReserved
  }

  /** Nobody would notice if it took its time. */
  get isIdle(): boolean {
    return !this.#isReserved && this.#followed.size === 0
  }

  reserve(): void {
    this.#isReserved = true
  }

  unreserve(): void {
    this.#isReserved = false
  }

  knows(key: string): boolean {
    return this.#keys.has(key)
  }

  async compile(key: string, grammar: Grammar): Promise<void> {
    const { compileTimeoutMs = COMPILE_TIMEOUT_MS } = this.#options
    this.#prepared ??= this.#ask({ type: 'prepare' }, PREPARE_TIMEOUT_MS, 'reading the vocabulary')
    await this.#prepared
    const { source, specialTokens: visible } = grammar
    await this.#ask({ type: 'write', source }, compileTimeoutMs, 'reading the grammar')
    const request = { type: 'compile', key, visible } as const
    await this.#ask(request, compileTimeoutMs, 'compiling the grammar')
  }

  /** Begins an output; the matcher's mask is that of the first token. */
  async follow(key: string, onError: (error: EngineError) => void): Promise<Matcher> {
    if (this.#isEnded) throw internalError('its thread ended')
    const id = this.#nextId++
    const words = Math.ceil(this.#options.vocabSize / 32)
    const buffer = new SharedArrayBuffer(4 * words)
    await new Promise<void>((resolve, reject) => {
      this.#followed.set(id, { onError: reject, onReady: resolve })
      this.#tell({ type: 'start', id, key, buffer })
      this.#watchBatch()
    })
    const following: Following = { onError, onReady: undefined }
    this.#followed.set(id, following)
    return {
      mask: new Int32Array(buffer),
      accept: (token, onReady) => {
        following.onReady = onReady
        this.#push(id, token)
      },
      close: () => {
        if (!this.#followed.delete(id) || this.#isEnded) return
        this.#tell({ type: 'close', id })
        if (this.isIdle) this.#events.onIdle()
      },
    }
  }

  /** Ends the thread; what it followed fails. */
  async end(error: EngineError): Promise<void> {
    if (this.#isEnded) return
    this.#isEnded = true
    clearTimeout(this.#watch)
    const followed = [...this.#followed.values()]
    this.#followed.clear()
    this.#keys.clear()
    this.#answer?.reject(error)
    this.#answer = undefined
    for (const { onError } of followed) onError(error)
    this.#events.onEnd()
    await this.#thread.terminate()
  }

  #tell(request: WorkerRequest): void {
    this.#thread.postMessage(request)
  }

  #ask(request: WorkerRequest, timeoutMs: number, what: string): Promise<void> {
    if (this.#isEnded) return Promise.reject(internalError('its thread ended'))
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        void this.end(grammarProblem(`${what} takes more than ${timeoutMs} ms; make it simpler`))
      }, timeoutMs)
      const settle = () => {
        clearTimeout(timer)
        this.#answer = undefined
      }
      this.#answer = {
        resolve: () => {
          settle()
          resolve()
        },
        reject: (error) => {
          settle()
          reject(error)
        },
      }
      this.#tell(request)
    })
  }

  /** Tokens of one turn of the event loop go in one message. */
  #push(id: number, token: number): void {
    if (this.#isEnded) return
    this.#tokens.push([id, token])
    if (this.#tokens.length > 1) return
    queueMicrotask(() => {
      const tokens = this.#tokens
      this.#tokens = []
      if (this.#isEnded) return
      this.#tell({ type: 'accept', tokens })
      this.#watchBatch()
    })
  }

  #watchBatch(): void {
    const { matchTimeoutMs = MATCH_TIMEOUT_MS } = this.#options
    this.#batchesInFlight++
    this.#watch ??= setTimeout(() => {
      void this.end(
        grammarProblem(
          `the grammar takes more than ${matchTimeoutMs} ms for a token; make it simpler`,
        ),
      )
    }, matchTimeoutMs)
  }

  #onMessage(message: WorkerMessage): void {
    switch (message.type) {
      case 'prepared':
      case 'written':
        this.#answer?.resolve()
        break
      case 'compiled':
        this.#keys = new Set(message.keys)
        this.#answer?.resolve()
        break
      case 'answers':
        this.#onAnswers(message.answers)
        break
      case 'refused':
        this.#answer?.reject(grammarProblem(message.message, message.param))
        break
      case 'failed':
        // An aborted module is of no use any more.
        void this.end(grammarProblem(`the grammar cannot be used: ${reasonOf(message)}`))
    }
  }

  #onAnswers(answers: readonly Answer[]): void {
    this.#batchesInFlight--
    clearTimeout(this.#watch)
    this.#watch = undefined
    if (this.#batchesInFlight > 0) {
      this.#batchesInFlight--
      this.#watchBatch()
    }
    for (const [id, state] of answers) {
      const following = this.#followed.get(id)
      if (following === undefined) continue
      const { onReady } = following
      following.onReady = undefined
      if (state === 'ready') onReady?.()
      else if (state === 'stuck') following.onError(stuckError())
      else following.onError(internalError(`a token was ${state}`))
    }
  }
}

/** What is wrong is the grammar as a whole, where nothing in it has been named. */
function withParam(error: unknown, param: string | undefined): unknown {
  if (!(error instanceof EngineError) || error.code !== 'ERR_USAGE') return error
  return error.param === undefined ? grammarProblem(error.message, param) : error
}

/** What the library said last, without where in its sources it stood. */
function reasonOf({ said, error }: { said: readonly string[]; error: string }): string {
  const fatal = said.findLast((line) => line.includes('[FATAL]')) ?? ''
  const reason = fatal.replace(/^.*\[FATAL\]\s*\S+:\d+:\s*/s, '').trim()
  if (reason !== '') return reason.slice(0, 500)
  // WebAssembly ends so when memory or stack do not suffice.
  return error.startsWith('RuntimeError')
    ? 'it is too large or nested too deep'
    : error.slice(0, 200)
}

function stuckError(): EngineError {
  return grammarProblem('no token of this model can continue the text as the grammar wants it')
}

function internalError(what: string): EngineError {
  return new EngineError('ERR_INTERNAL', `the output cannot follow its grammar: ${what}`)
}

function closedError(): EngineError {
  return new EngineError('ERR_CLOSED', 'the engine is closed')
}
