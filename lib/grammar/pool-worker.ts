/**
 * GrammarWorker: one worker thread of the pool (pool.ts). It writes and compiles grammars, follows outputs
 * through them, and is ended where it takes too long; grammar-worker.ts is what runs in it.
 */

import { Worker } from 'node:worker_threads'
import { EngineError } from '../errors.ts'
import type { Grammar } from './grammar.ts'
import type { Answer, WorkerData, WorkerMessage, WorkerRequest } from './messages.ts'
import { grammarProblem } from './problem.ts'
import type { Matcher, Vocabulary } from './types.ts'
import { findWorkerCode } from './worker-code.ts'

export interface GrammarWorkerOptions {
  readonly vocabulary: Vocabulary
  /** Columns of the logits. */
  readonly vocabSize: number
  /** For writing a grammar, and for compiling it. */
  readonly compileTimeoutMs?: number
  /** For one batch of tokens. */
  readonly matchTimeoutMs?: number
}

const COMPILE_TIMEOUT_MS = 2_000
const MATCH_TIMEOUT_MS = 2_000
/** Reading a vocabulary of a quarter of a million tokens on a slow machine. */
const PREPARE_TIMEOUT_MS = 60_000
/** WebAssembly memory of a worker. */
const MAX_MEMORY_BYTES = 512 << 20
const MAX_CACHED = 16

interface Following {
  readonly onError: (error: EngineError) => void
  onReady: (() => void) | undefined
}

interface WorkerEvents {
  /** It follows nothing any more. */
  readonly onIdle: () => void
  readonly onEnd: () => void
}

/** One thread. Asked for one thing at a time, tokens excepted. */
export class GrammarWorker {
  readonly #options: GrammarWorkerOptions
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

  constructor(options: GrammarWorkerOptions, events: WorkerEvents) {
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
    try {
      await new Promise<void>((resolve, reject) => {
        this.#followed.set(id, { onError: reject, onReady: resolve })
        this.#tell({ type: 'start', id, key, buffer })
        this.#watchBatch()
      })
    } catch (error) {
      // The thread may have begun it, and would keep it.
      this.#forget(id)
      throw error
    }
    const following: Following = { onError, onReady: undefined }
    this.#followed.set(id, following)
    return {
      mask: new Int32Array(buffer),
      accept: (token, onReady) => {
        following.onReady = onReady
        this.#push(id, token)
      },
      close: () => {
        if (this.#forget(id) && this.isIdle) this.#events.onIdle()
      },
    }
  }

  /** False: it does not follow it. */
  #forget(id: number): boolean {
    if (!this.#followed.delete(id) || this.#isEnded) return false
    this.#tell({ type: 'close', id })
    return true
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
    try {
      for (const { onError } of followed) onError(error)
    } finally {
      this.#events.onEnd()
      await this.#thread.terminate()
    }
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
