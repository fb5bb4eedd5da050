/**
 * Encodes long texts in a worker thread, one after another, so that they do not hold up the event
 * loop. The thread is started when it is first needed and replaced when it dies or hangs.
 */

import { Worker } from 'node:worker_threads'
import { EngineError } from '../errors.ts'
import type { JsonObject } from '../weights/json.ts'

/** Far more than the longest text takes; for a thread that hangs. */
const TIMEOUT_MS = 120_000

export interface EncoderFiles {
  readonly file: JsonObject
  readonly config: JsonObject
}

interface Answer {
  readonly ids?: number[]
  readonly error?: string
}

export class BackgroundEncoder {
  readonly #files: EncoderFiles
  #worker: Worker | undefined
  #tail: Promise<unknown> = Promise.resolve()
  #isClosed = false

  constructor(files: EncoderFiles) {
    this.#files = files
  }

  /** Token ids, after everything asked for before. ERR_TOKENIZER where they cannot be had. */
  encode(text: string, addSpecialTokens: boolean): Promise<number[]> {
    const ids = this.#tail.then(() => this.#exchange({ text, addSpecialTokens }))
    this.#tail = ids.catch(() => {})
    return ids
  }

  async close(): Promise<void> {
    this.#isClosed = true
    const worker = this.#worker
    this.#worker = undefined
    await worker?.terminate()
  }

  #start(): Worker {
    const worker = new Worker(new URL('./encode-worker.js', import.meta.url), {
      workerData: this.#files,
      // Loaders of the main thread are not needed there.
      execArgv: [],
    })
    worker.on('error', () => {})
    worker.unref()
    return worker
  }

  #exchange(request: object): Promise<number[]> {
    if (this.#isClosed)
      return Promise.reject(new EngineError('ERR_CLOSED', 'the tokenizer is closed'))
    this.#worker ??= this.#start()
    const worker = this.#worker
    return new Promise((resolve, reject) => {
      // Only a text in progress keeps the process alive.
      worker.ref()
      const settle = (finish: () => void): void => {
        clearTimeout(timer)
        worker.off('message', onMessage)
        worker.off('exit', onExit)
        worker.unref()
        finish()
      }
      const fail = (code: 'ERR_TOKENIZER' | 'ERR_CLOSED', why: string): void =>
        settle(() => reject(new EngineError(code, `the text cannot be tokenized: ${why}`)))
      const onMessage = ({ ids, error = '' }: Answer): void => {
        if (ids === undefined) fail('ERR_TOKENIZER', error)
        else settle(() => resolve(ids))
      }
      const onExit = (): void => {
        if (this.#worker === worker) this.#worker = undefined
        if (this.#isClosed) fail('ERR_CLOSED', 'the tokenizer was closed')
        else fail('ERR_TOKENIZER', 'its thread ended')
      }
      const timer = setTimeout(() => void worker.terminate(), TIMEOUT_MS)
      worker.on('message', onMessage)
      worker.once('exit', onExit)
      worker.postMessage(request)
    })
  }
}
