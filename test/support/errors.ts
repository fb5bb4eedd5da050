/** Runs `action` and gives the code of the EngineError it throws; anything else fails the test. */

import { EngineError, type ErrorCode } from '../../lib/errors.ts'

export function codeOf(action: () => unknown): ErrorCode {
  return errorOf(action).code
}

export function errorOf(action: () => unknown): EngineError {
  try {
    action()
  } catch (error) {
    if (error instanceof EngineError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}
