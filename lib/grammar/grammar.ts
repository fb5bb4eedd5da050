/** What a request may ask its output to follow, and how it is put to the workers that write and compile it. */

import { GrammarBuilder } from './builder.ts'
import type { Draft } from './draft.ts'
import { grammarProblem } from './problem.ts'
import type { GrammarSource } from './write-grammar.ts'

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
  /** @internal Rules and schemas of several parts of a request, as the server puts them together. */
  readonly draft?: Draft
  /** Special tokens that may stand in the text, by their spelling; the others never come. */
  readonly specialTokens?: readonly string[]
  /** @internal What the request's sender calls it, for errors. */
  readonly param?: string
}

const FORMS = ['json', 'schema', 'regex', 'ebnf'] as const
const MAX_SPECIAL_TOKENS = 64

/** The grammar of a request, its form checked; what it says is checked where it is written. */
export interface Grammar {
  /** A GrammarSource as JSON. */
  readonly source: string
  readonly specialTokens: readonly string[]
  readonly param?: string
}

/** ERR_USAGE says what cannot be used. */
export function readGrammar(spec: GrammarSpec): Grammar {
  if (typeof spec !== 'object' || spec === null)
    throw grammarProblem(`grammar must be an object with one of ${FORMS.join(', ')}`)
  const given = [...FORMS, 'draft' as const].filter((form) => spec[form] !== undefined)
  if (given.length !== 1)
    throw grammarProblem(`grammar must have exactly one of ${FORMS.join(', ')}`)
  const specialTokens = spec.specialTokens ?? []
  if (
    !Array.isArray(specialTokens) ||
    specialTokens.length > MAX_SPECIAL_TOKENS ||
    !specialTokens.every((token) => typeof token === 'string' && token !== '')
  )
    throw grammarProblem(`specialTokens must be up to ${MAX_SPECIAL_TOKENS} texts`)
  return {
    source: jsonOf(sourceOf(spec)),
    specialTokens: [...new Set(specialTokens)].sort(),
    ...(spec.param !== undefined && { param: spec.param }),
  }
}

function sourceOf({ json, schema, regex, ebnf, draft }: GrammarSpec): GrammarSource {
  if (draft !== undefined) return { draft }
  if (ebnf !== undefined) {
    if (typeof ebnf !== 'string' || ebnf.trim() === '')
      throw grammarProblem('ebnf must be a text with rules like: root ::= "yes" | "no"')
    return { ebnf }
  }
  const builder = new GrammarBuilder()
  if (regex !== undefined) {
    if (typeof regex !== 'string') throw grammarProblem('regex must be a text')
    return { draft: builder.draft(builder.pattern(regex)) }
  }
  if (json !== undefined) {
    if (json !== true) throw grammarProblem('json must be true')
    return { draft: builder.draft(builder.shared('json_object')) }
  }
  return { draft: builder.draft(builder.schema(schema)) }
}

function jsonOf(source: GrammarSource): string {
  try {
    return JSON.stringify(source)
  } catch (cause) {
    throw grammarProblem(
      `the schema must be plain JSON: ${(cause as Error).message.split('\n')[0]}`,
    )
  }
}
