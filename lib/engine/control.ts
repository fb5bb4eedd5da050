/**
 * RequestControl: what may end a request from outside, its AbortSignal and its deadline. Armed once,
 * and disarmed when the request ends, so that no timer and no listener outlives it.
 */

import { EngineError } from '../errors.ts'

export interface ControlOptions {
  readonly signal?: AbortSignal
  /** From now, milliseconds. */
  readonly deadlineMs?: number
}

const MAX_DEADLINE_MS = 2 ** 31 - 1

export class RequestControl {
  readonly #onStop: (error: EngineError) => void
  #signal: AbortSignal | undefined
  #timer: NodeJS.Timeout | undefined
  #stopped: EngineError | undefined

  /** `onStop` is called at most once, not before the constructor has returned. */
  constructor(options: ControlOptions, onStop: (error: EngineError) => void) {
    this.#onStop = onStop
    const { signal, deadlineMs } = options
    if (signal !== undefined && typeof signal?.addEventListener !== 'function')
      throw new EngineError('ERR_USAGE', 'signal must be an AbortSignal')
    if (
      deadlineMs !== undefined &&
      !(typeof deadlineMs === 'number' && deadlineMs > 0 && deadlineMs <= MAX_DEADLINE_MS)
    )
      throw new EngineError('ERR_USAGE', `deadlineMs must be a number from 0 to ${MAX_DEADLINE_MS}`)
    if (signal?.aborted) {
      this.#stopped = aborted(signal)
      return
    }
    if (signal !== undefined) {
      this.#signal = signal
      signal.addEventListener('abort', this.#onAbort)
    }
    if (deadlineMs !== undefined) {
      this.#timer = setTimeout(() => {
        this.#stop(new EngineError('ERR_DEADLINE', `the request took more than ${deadlineMs} ms`))
      }, deadlineMs)
    }
  }

  /** Throws if the request has been stopped already. */
  throwIfStopped(): void {
    if (this.#stopped !== undefined) throw this.#stopped
  }

  disarm(): void {
    this.#signal?.removeEventListener('abort', this.#onAbort)
    this.#signal = undefined
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  readonly #onAbort = () => {
    if (this.#signal !== undefined) this.#stop(aborted(this.#signal))
  }

  #stop(error: EngineError): void {
    this.disarm()
    this.#stopped = error
    this.#onStop(error)
  }
}

function aborted(signal: AbortSignal): EngineError {
  return new EngineError('ERR_ABORTED', 'the request was cancelled by its signal', {
    cause: signal.reason,
  })
}
