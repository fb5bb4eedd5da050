/** What a request may ask its output to follow, and the EBNF that says so. */

import { GrammarBuilder } from './builder.ts'
import { addSchema } from './json-schema.ts'
import { grammarProblem } from './problem.ts'
import { plainText, regexExpression } from './regex.ts'

/** Exactly one of `json`, `schema`, `regex`, `ebnf`. */
export interface GrammarSpec {
  /** Any JSON object. */
  readonly json?: true
  /** JSON that validates against this JSON Schema. */
  readonly schema?: unknown
  /** Text that this regular expression matches as a whole. */
  readonly regex?: string
  /** Text that the rule `root` of this grammar describes, in xgrammar's (GBNF's) notation. */
  readonly ebnf?: string
  /** Special tokens that may stand in the text, by their spelling; the others never come. */
  readonly specialTokens?: readonly string[]
}

const FORMS = ['json', 'schema', 'regex', 'ebnf'] as const
const MAX_EBNF = 256 << 10
const MAX_NESTING = 64
const MAX_SPECIAL_TOKENS = 64

/** The grammar of a request, checked. ERR_USAGE says what cannot be used. */
export interface Grammar {
  readonly ebnf: string
  readonly specialTokens: readonly string[]
}

export function readGrammar(spec: GrammarSpec): Grammar {
  if (typeof spec !== 'object' || spec === null)
    throw grammarProblem(`grammar must be an object with one of ${FORMS.join(', ')}`)
  const given = FORMS.filter((form) => spec[form] !== undefined)
  if (given.length !== 1)
    throw grammarProblem(`grammar must have exactly one of ${FORMS.join(', ')}`)
  const specialTokens = spec.specialTokens ?? []
  if (
    !Array.isArray(specialTokens) ||
    specialTokens.length > MAX_SPECIAL_TOKENS ||
    !specialTokens.every((token) => typeof token === 'string' && token !== '')
  )
    throw grammarProblem(`specialTokens must be up to ${MAX_SPECIAL_TOKENS} texts`)
  return { ebnf: ebnfOf(spec), specialTokens: [...new Set(specialTokens)].sort() }
}

function ebnfOf({ json, schema, regex, ebnf }: GrammarSpec): string {
  const builder = new GrammarBuilder()
  if (ebnf !== undefined) return checkEbnf(ebnf)
  if (regex !== undefined) {
    if (typeof regex !== 'string') throw grammarProblem('regex must be a text')
    return builder.text(regexExpression(regex, plainText))
  }
  if (json !== undefined) {
    if (json !== true) throw grammarProblem('json must be true')
    return builder.text(builder.shared('json_object'))
  }
  return builder.text(addSchema(builder, schema))
}

/** Comments, texts and classes whole; any other character. */
const EBNF_TOKEN = /#[^\n]*|"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[\s\S]/g
/** xgrammar takes classes for bytes. */
const BEYOND_ASCII = /[^\0-\x7f]|\\(?:x[89a-fA-F]|u(?!00[0-7])|U(?!000000[0-7]))/

function checkEbnf(ebnf: unknown): string {
  if (typeof ebnf !== 'string' || ebnf.trim() === '')
    throw grammarProblem('ebnf must be a text with rules like: root ::= "yes" | "no"')
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
