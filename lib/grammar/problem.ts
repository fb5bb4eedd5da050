/** GrammarProblem: why a grammar, schema or pattern cannot be used. The engine makes ERR_USAGE of it. */

import { EngineError } from '../errors.ts'

export function grammarProblem(what: string): EngineError {
  return new EngineError('ERR_USAGE', what)
}
