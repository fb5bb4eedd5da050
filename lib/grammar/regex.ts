/**
 * Regular expressions → EBNF. A recursive-descent parser for the part of ECMAScript's syntax that is
 * regular: no look-around, no back-references, anchors at the ends only. The pattern describes the
 * whole text. Reading it is linear in its length.
 */

import {
  type Characters,
  classOf,
  complement,
  jsonClassOf,
  MAX_CODE_POINT,
  normalize,
} from './characters.ts'
import { grammarProblem } from './problem.ts'

/** How a set of characters is written; undefined for a set that nothing is in. */
export type WriteClass = (characters: Characters) => string | undefined

/** Characters as they are. */
export const plainText: WriteClass = (characters) =>
  characters.length === 0 ? undefined : classOf(characters)
/** Characters inside a JSON string. */
export const jsonText: WriteClass = jsonClassOf

const MAX_PATTERN = 16 << 10
const MAX_DEPTH = 64
const MAX_REPEAT = 4096

const DIGIT: Characters = [[0x30, 0x39]]
const WORD: Characters = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]
const SPACE: Characters = [
  [0x09, 0x0d],
  [0x20, 0x20],
]
const LINE_ENDS: Characters = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
]
const CLASS_ESCAPES: Readonly<Record<string, Characters>> = {
  d: DIGIT,
  D: complement(DIGIT),
  w: WORD,
  W: complement(WORD),
  s: SPACE,
  S: complement(SPACE),
}
const CONTROL_ESCAPES: Readonly<Record<string, number>> = {
  n: 0x0a,
  r: 0x0d,
  t: 0x09,
  f: 0x0c,
  v: 0x0b,
  '0': 0,
}

class RegexReader {
  readonly #characters: readonly string[]
  readonly #write: WriteClass
  #at = 0

  constructor(pattern: string, write: WriteClass) {
    this.#characters = [...pattern]
    this.#write = write
  }

  read(): string {
    const expression = this.#alternatives(0)
    if (this.#at < this.#characters.length) throw this.#problem(`unexpected ${this.#peek()}`)
    return expression
  }

  #peek(): string | undefined {
    return this.#characters[this.#at]
  }

  #take(expected?: string): boolean {
    if (expected !== undefined && this.#peek() !== expected) return false
    this.#at++
    return true
  }

  #problem(what: string): Error {
    return grammarProblem(`the regular expression cannot be used: ${what} at ${this.#at}`)
  }

  #alternatives(depth: number): string {
    if (depth > MAX_DEPTH) throw this.#problem(`groups nested more than ${MAX_DEPTH} deep`)
    const choices = [this.#sequence(depth)]
    while (this.#take('|')) choices.push(this.#sequence(depth))
    return choices.length === 1 ? choices[0]! : `(${choices.join(' | ')})`
  }

  #sequence(depth: number): string {
    const items: string[] = []
    if (this.#peek() === '^') {
      if (depth > 0) throw this.#problem('^ inside a group')
      this.#at++
    }
    for (let next = this.#peek(); next !== undefined && next !== '|' && next !== ')'; ) {
      if (next === '$') {
        this.#at++
        const after = this.#peek()
        if (depth > 0 || (after !== undefined && after !== '|'))
          throw this.#problem('$ anywhere but at the end')
        break
      }
      items.push(this.#repeated(this.#item(depth)))
      next = this.#peek()
    }
    return items.length === 0 ? '""' : items.join(' ')
  }

  #item(depth: number): string {
    const character = this.#peek()!
    switch (character) {
      case '(':
        return this.#group(depth)
      case '[':
        return this.#writeClass(this.#class())
      case '.':
        this.#at++
        return this.#writeClass(complement(LINE_ENDS))
      case '\\':
        return this.#writeClass(this.#escape())
      case '*':
      case '+':
      case '?':
        throw this.#problem(`nothing for ${character} to repeat`)
    }
    this.#at++
    return this.#writeClass(one(character.codePointAt(0)!))
  }

  #writeClass(characters: Characters): string {
    const written = this.#write(characters)
    if (written === undefined) throw this.#problem('a set without a character that may stand here')
    return written
  }

  #group(depth: number): string {
    this.#at++
    if (this.#take('?')) {
      if (this.#take('<')) {
        if (this.#peek() === '=' || this.#peek() === '!') throw this.#problem('look-behind')
        while (this.#peek() !== undefined && this.#peek() !== '>') this.#at++
        this.#at++
      } else if (!this.#take(':')) throw this.#problem('look-ahead or an unknown group')
    }
    const body = this.#alternatives(depth + 1)
    if (!this.#take(')')) throw this.#problem('a group that is not closed')
    return `(${body})`
  }

  #repeated(item: string): string {
    let result = item
    const next = this.#peek()
    if (next === '*' || next === '+' || next === '?') {
      this.#at++
      result = `${item}${next}`
    } else if (next === '{') {
      const [least, most] = this.#bounds()
      result = `${item}{${least},${most ?? ''}}`
    } else return item
    // Lazy or greedy: the same texts.
    this.#take('?')
    if (['*', '+', '?', '{'].includes(this.#peek() ?? '')) throw this.#problem('a repeated repeat')
    return `(${result})`
  }

  #bounds(): readonly [number, number | undefined] {
    const match = /^\{(\d{1,6})(,(\d{0,6}))?\}/.exec(
      this.#characters.slice(this.#at, this.#at + 16).join(''),
    )
    if (match === null) throw this.#problem('a { that is no repeat; escape it')
    this.#at += match[0].length
    const least = Number(match[1])
    const most = match[2] === undefined ? least : match[3] === '' ? undefined : Number(match[3])
    if (least > MAX_REPEAT || (most ?? 0) > MAX_REPEAT)
      throw this.#problem(`more than ${MAX_REPEAT} repeats`)
    if (most !== undefined && most < least)
      throw this.#problem('a repeat that ends before it begins')
    return [least, most]
  }

  /** The set that an escape stands for; one character for most. */
  #escape(): Characters {
    this.#at++
    const character = this.#peek()
    if (character === undefined) throw this.#problem('a \\ at the end')
    this.#at++
    if (Object.hasOwn(CLASS_ESCAPES, character)) return CLASS_ESCAPES[character]!
    if (Object.hasOwn(CONTROL_ESCAPES, character)) return one(CONTROL_ESCAPES[character]!)
    if (character === 'x') return one(this.#hexDigits(2))
    if (character === 'u') return one(this.#unicodeEscape())
    if (/[A-Za-z0-9]/.test(character))
      throw this.#problem(`\\${character}, which is no regular expression or is not supported`)
    return one(character.codePointAt(0)!)
  }

  #hexDigits(count: number): number {
    const digits = this.#characters.slice(this.#at, this.#at + count).join('')
    if (digits.length !== count || !/^[0-9a-fA-F]+$/.test(digits)) throw this.#problem('bad escape')
    this.#at += count
    return Number.parseInt(digits, 16)
  }

  #unicodeEscape(): number {
    if (!this.#take('{')) return this.#hexDigits(4)
    let length = 0
    while (this.#characters[this.#at + length] !== '}' && length < 7) length++
    const codePoint = this.#hexDigits(length)
    if (!this.#take('}') || codePoint > MAX_CODE_POINT) throw this.#problem('bad escape')
    return codePoint
  }

  #class(): Characters {
    this.#at++
    const isNegated = this.#take('^')
    const ranges: [number, number][] = []
    while (this.#peek() !== ']') {
      const from = this.#classMember()
      const isRange = this.#peek() === '-' && this.#characters[this.#at + 1] !== ']'
      if (!isRange || from.length !== 1 || from[0]![0] !== from[0]![1]) {
        for (const [low, high] of from) ranges.push([low, high])
        continue
      }
      this.#at++
      const to = this.#classMember()
      if (to.length !== 1 || to[0]![0] < from[0]![0]) throw this.#problem('a range out of order')
      ranges.push([from[0]![0], to[0]![0]])
    }
    this.#at++
    return isNegated ? complement(ranges) : complement(complement(normalize(ranges)))
  }

  #classMember(): Characters {
    const character = this.#peek()
    if (character === undefined) throw this.#problem('a [ that is not closed')
    if (character === '\\') {
      if (this.#characters[this.#at + 1] !== 'b') return this.#escape()
      this.#at += 2
      return one(0x08)
    }
    this.#at++
    return one(character.codePointAt(0)!)
  }
}

function one(codePoint: number): Characters {
  return [[codePoint, codePoint]]
}

/** ERR_USAGE says what cannot be used and where. */
export function regexExpression(pattern: string, write: WriteClass): string {
  if (pattern.length > MAX_PATTERN)
    throw grammarProblem(`the regular expression is longer than ${MAX_PATTERN} characters`)
  return `(${new RegexReader(pattern, write).read()})`
}
