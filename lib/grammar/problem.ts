/** Why a grammar, schema or pattern cannot be used: ERR_USAGE. */

import { EngineError } from '../errors.ts'

/** `param`: what of the request it is about, as its sender calls it. */
export function grammarProblem(what: string, param?: string): EngineError {
  return new EngineError('ERR_USAGE', what, param === undefined ? {} : { param })
}
