/**
 * GrammarBuilder: collects the rules of an EBNF grammar in xgrammar's notation, the JSON values that
 * schemas are made of among them. White space between JSON tokens is optional and bounded, so that
 * no output consists of it.
 */

import {
  type Characters,
  classOf,
  complement,
  jsonClassOf,
  literalOf,
  normalize,
} from './characters.ts'
import type { Draft, Unwritten } from './draft.ts'
import { grammarProblem } from './problem.ts'

/** Rules that stand in a grammar once something names them. */
const SHARED: Readonly<Record<string, string>> = {
  ws: '"" | " " | "\\n" [ \\t]{0,40}',
  // Escapes of surrogates are left out: a pair of them is one character and counts as two.
  json_char: `${jsonClassOf(
    complement([
      [0x22, 0x22],
      [0x5c, 0x5c],
      [0, 0x1f],
    ]),
  )} | "\\\\" (["\\\\/bfnrt] | "u" ([0-9A-CE-Fa-ce-f] [0-9A-Fa-f]{3} | [Dd] [0-7] [0-9A-Fa-f]{2}))`,
  json_string: '"\\"" json_char* "\\""',
  json_integer: '"-"? ("0" | [1-9] [0-9]{0,14})',
  json_number: 'json_integer ("." [0-9]{1,16})? ([eE] [+-]? [0-9]{1,2})?',
  json_boolean: '"true" | "false"',
  json_pair: 'json_string ws ":" ws json_value',
  json_object: '"{" ws "}" | "{" ws json_pair (ws "," ws json_pair)* ws "}"',
  json_array: '"[" ws "]" | "[" ws json_value (ws "," ws json_value)* ws "]"',
  json_value: 'json_object | json_array | json_string | json_number | json_boolean | "null"',
}

const MAX_CHARACTERS = 4 << 20

export class GrammarBuilder {
  readonly #rules = new Map<string, string>()
  readonly #unwritten: Unwritten[] = []
  #numCharacters = 0
  #next = 0

  /** Goes on where a draft ends; what is unwritten in it is for the caller to define. */
  static resume({ rules, numNames }: Draft): GrammarBuilder {
    const builder = new GrammarBuilder()
    for (const [name, body] of rules) builder.define(name, body)
    builder.#next = numNames
    return builder
  }

  /** Defines a shared rule and those it names; returns its name. */
  shared(name: string): string {
    const body = SHARED[name]
    if (body !== undefined && !this.#rules.has(name)) {
      this.#add(name, body)
      for (const other of Object.keys(SHARED))
        if (new RegExp(`\\b${other}\\b`).test(body)) this.shared(other)
    }
    return name
  }

  /** Adds a rule, and returns the name it got. */
  rule(body: string): string {
    const name = this.reserve()
    this.define(name, body)
    return name
  }

  /** A name for a rule that will be defined later. */
  reserve(): string {
    return `r${this.#next++}`
  }

  define(name: string, body: string): void {
    this.#add(name, body)
  }

  /** A rule for JSON that validates against `schema`, written later; see Unwritten. */
  schema(schema: unknown, param?: string): string {
    return this.#later({ schema, ...(param !== undefined && { param }) })
  }

  /** A rule for texts that `regex` matches as a whole, written later. */
  pattern(regex: string, param?: string): string {
    return this.#later({ regex, ...(param !== undefined && { param }) })
  }

  literal(text: string): string {
    return literalOf(text)
  }

  /** Any of `characters`, of which there is one at least. */
  oneOf(characters: string): string {
    return classOf(normalize(charactersOf(characters)))
  }

  /** Any character but those of `characters`. */
  noneOf(characters: string): string {
    return classOf(complement(charactersOf(characters)))
  }

  /** The grammar whose texts `root` describes. */
  text(root: string): string {
    const rules = [...this.#rules].map(([name, body]) => `${name} ::= ${body}`)
    return [...rules, `root ::= ${root}\n`].join('\n')
  }

  /** What there is so far, for another builder to go on with. */
  draft(root: string): Draft {
    return {
      rules: [...this.#rules],
      numNames: this.#next,
      unwritten: [...this.#unwritten],
      root,
    }
  }

  #later(part: Omit<Unwritten, 'name'>): string {
    const name = this.reserve()
    this.#unwritten.push({ name, ...part })
    return name
  }

  #add(name: string, body: string): void {
    this.#numCharacters += name.length + body.length
    if (this.#numCharacters > MAX_CHARACTERS)
      throw grammarProblem(
        `the grammar has more than ${MAX_CHARACTERS} characters; make it smaller`,
      )
    this.#rules.set(name, body)
  }
}

function charactersOf(text: string): Characters {
  return [...text].map((character) => {
    const codePoint = character.codePointAt(0)!
    return [codePoint, codePoint] as const
  })
}
