/**
 * Ctrl-C: the first one aborts the work, which then closes its engine and ends with exit code
 * 130; the second one ends the process at once. A closed stdout aborts the work too.
 */

import { EXIT_INTERRUPTED, EXIT_OK } from './exit-codes.ts'

export interface Interrupt {
  /** Aborted by the first signal, or when stdout is closed. */
  readonly signal: AbortSignal
  /** What to exit with once aborted. */
  readonly exitCode: () => number
  /** The signal asks for an orderly end: exit code 0 once aborted. */
  readonly endWell: () => void
  /** As if the signal had come; for terminals in raw mode. */
  readonly trigger: () => void
}

export function listenForInterrupt(): Interrupt {
  const controller = new AbortController()
  let exitCode = EXIT_INTERRUPTED
  const trigger = (): void => {
    if (controller.signal.aborted) process.exit(EXIT_INTERRUPTED)
    controller.abort()
  }
  process.on('SIGINT', trigger)
  process.on('SIGTERM', trigger)
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    // The reader has all it wanted.
    exitCode = EXIT_OK
    if (!controller.signal.aborted) controller.abort()
  })
  const endWell = (): void => {
    exitCode = EXIT_OK
  }
  return { signal: controller.signal, exitCode: () => exitCode, endWell, trigger }
}
