/** What a request's grammar becomes: EBNF in xgrammar's notation. Runs in the workers that compile it. */

import { EngineError } from '../errors.ts'
import { GrammarBuilder } from './builder.ts'
import type { Draft, Unwritten } from './draft.ts'
import { addSchema } from './json-schema.ts'
import { grammarProblem } from './problem.ts'
import { plainText, regexExpression } from './regex.ts'

/** Plain JSON: it goes to a worker as text. */
export type GrammarSource =
  | { readonly ebnf: string; readonly draft?: undefined }
  | { readonly draft: Draft }

const MAX_EBNF = 256 << 10
const MAX_NESTING = 64

/** ERR_USAGE says what cannot be used, and names what of the request it is. */
export function writeGrammar(source: GrammarSource): string {
  if (source.draft === undefined) return checkEbnf(source.ebnf)
  const { draft } = source
  const builder = GrammarBuilder.resume(draft)
  for (const part of draft.unwritten) builder.define(part.name, write(builder, part))
  return builder.text(draft.root)
}

function write(builder: GrammarBuilder, part: Unwritten): string {
  try {
    if (part.regex === undefined) return addSchema(builder, part.schema)
    return regexExpression(part.regex, plainText)
  } catch (error) {
    if (error instanceof EngineError) throw grammarProblem(error.message, part.param)
    throw error
  }
}

/** Comments, texts and classes whole; any other character. */
const EBNF_TOKEN = /#[^\n]*|"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[\s\S]/g
/** xgrammar takes classes for bytes. */
const BEYOND_ASCII = /[^\0-\x7f]|\\(?:x[89a-fA-F]|u(?!00[0-7])|U(?!000000[0-7]))/

function checkEbnf(ebnf: string): string {
  if (ebnf.length > MAX_EBNF)
    throw grammarProblem(`the grammar has more than ${MAX_EBNF} characters`)
  let depth = 0
  for (const [token] of ebnf.matchAll(EBNF_TOKEN)) {
    if (token === '(') depth++
    else if (token === ')') depth--
    if (depth > MAX_NESTING)
      throw grammarProblem(`the grammar has groups nested more than ${MAX_NESTING} deep`)
    if (token.startsWith('[') && BEYOND_ASCII.test(token))
      throw grammarProblem(
        `the class ${token.slice(0, 40)} has characters beyond ASCII; write them as texts: "é" | "ü"`,
      )
  }
  return ebnf
}
