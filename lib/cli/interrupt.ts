/**
 * Ctrl-C: the first one aborts the work, which then closes its engine and ends with exit code
 * 130; the second one ends the process at once. A stdout that is closed or fails aborts the work too.
 */

import { getSystemErrorMap } from 'node:util'
import { EngineError } from '../errors.ts'
import { EXIT_INTERRUPTED, EXIT_OK } from './exit-codes.ts'

export interface Interrupt {
  /** Aborted by the first signal, or when stdout is closed or fails. */
  readonly signal: AbortSignal
  /** What to exit with once aborted. */
  readonly exitCode: () => number
  /** The signal asks for an orderly end: exit code 0 once aborted. */
  readonly endWell: () => void
  /** As if the signal had come; for terminals in raw mode. */
  readonly trigger: () => void
  /** ERR_IO with the reason, when stdout could not be written. */
  readonly outputFailure: () => EngineError | undefined
}

/** `no space left on device` for ENOSPC. */
function describeSystemError({ errno, message }: NodeJS.ErrnoException): string {
  return (errno === undefined ? undefined : getSystemErrorMap().get(errno)?.[1]) ?? message
}

export function listenForInterrupt(): Interrupt {
  const controller = new AbortController()
  let exitCode = EXIT_INTERRUPTED
  let failure: EngineError | undefined
  const trigger = (): void => {
    if (controller.signal.aborted) process.exit(EXIT_INTERRUPTED)
    controller.abort()
  }
  process.on('SIGINT', trigger)
  process.on('SIGTERM', trigger)
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    // EPIPE: the reader has all it wanted.
    if (error.code === 'EPIPE') exitCode = EXIT_OK
    else
      failure ??= new EngineError('ERR_IO', `cannot write stdout: ${describeSystemError(error)}`, {
        cause: error,
      })
    if (!controller.signal.aborted) controller.abort()
  })
  const endWell = (): void => {
    exitCode = EXIT_OK
  }
  return {
    signal: controller.signal,
    exitCode: () => exitCode,
    endWell,
    trigger,
    outputFailure: () => failure,
  }
}
