/** Exit codes of the command line, and which error gives which. */

import type { ErrorCode } from '../errors.ts'

export const EXIT_OK = 0
export const EXIT_FAILED = 1
export const EXIT_USAGE = 2
export const EXIT_UNSUPPORTED = 3
/** 128 + SIGINT, by custom. */
export const EXIT_INTERRUPTED = 130

const unsupportedCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_UNSUPPORTED_MODEL',
  'ERR_UNSUPPORTED_LAYOUT',
  'ERR_UNSUPPORTED_OPTION',
  'ERR_NO_BINARY',
  'ERR_NO_DEVICE',
])

export function exitCodeOf(code: ErrorCode): number {
  if (code === 'ERR_USAGE') return EXIT_USAGE
  return unsupportedCodes.has(code) ? EXIT_UNSUPPORTED : EXIT_FAILED
}
