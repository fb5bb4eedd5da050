/**
 * JsonScanner: validates one JSON object as its characters arrive (RFC 8259) and says which of them
 * belong to the keys and values of the top level. Nothing recurses; depth is bounded.
 */

/** `key`, `value`: part of a key or a value of the top level. `other`: between them. */
export type CharRole = 'key' | 'value' | 'other' | 'end' | 'invalid'

type Expect = 'object' | 'value' | 'first-key' | 'key' | 'colon' | 'next' | 'first-item' | 'nothing'

const MAX_DEPTH = 64
const MAX_SCALAR = 1024
const SCALAR = /^(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/
const SCALAR_CHAR = /[-+.0-9A-Za-z]/
const SPACE = /[ \t\n\r]/
const HEX = /[0-9a-fA-F]/

export class JsonScanner {
  readonly #open: ('{' | '[')[] = []
  #expect: Expect = 'object'
  #mode: 'between' | 'string' | 'escape' | 'unicode' | 'scalar' = 'between'
  #stringIsKey = false
  #hexDigits = 0
  #scalar = ''

  /** After `end` or `invalid` nothing more may be pushed. */
  push(char: string): CharRole {
    switch (this.#mode) {
      case 'string':
        return this.#inString(char)
      case 'escape':
        if (!'"\\/bfnrtu'.includes(char)) return 'invalid'
        this.#mode = char === 'u' ? 'unicode' : 'string'
        this.#hexDigits = 0
        return this.#stringRole()
      case 'unicode':
        if (!HEX.test(char)) return 'invalid'
        if (++this.#hexDigits === 4) this.#mode = 'string'
        return this.#stringRole()
      case 'scalar':
        if (SCALAR_CHAR.test(char)) {
          this.#scalar += char
          return this.#scalar.length > MAX_SCALAR ? 'invalid' : 'value'
        }
        if (!SCALAR.test(this.#scalar)) return 'invalid'
        this.#mode = 'between'
        this.#expect = 'next'
        return this.#between(char)
      case 'between':
        return this.#between(char)
    }
  }

  #stringRole(): CharRole {
    return this.#stringIsKey && this.#open.length === 1 ? 'key' : 'value'
  }

  #inString(char: string): CharRole {
    const role = this.#stringRole()
    if (char === '\\') this.#mode = 'escape'
    else if (char === '"') {
      this.#mode = 'between'
      this.#expect = this.#stringIsKey ? 'colon' : 'next'
    } else if (char < ' ') return 'invalid'
    return role
  }

  #between(char: string): CharRole {
    const inside: CharRole = this.#open.length > 1 ? 'value' : 'other'
    if (SPACE.test(char)) return inside
    switch (this.#expect) {
      case 'object':
        return char === '{' ? this.#enter('{') : 'invalid'
      case 'first-key':
      case 'key':
        if (char === '}' && this.#expect === 'first-key') return this.#leave('{')
        return char === '"' ? this.#beginString(true) : 'invalid'
      case 'colon':
        if (char !== ':') return 'invalid'
        this.#expect = 'value'
        return inside
      case 'first-item':
        if (char === ']') return this.#leave('[')
        return this.#beginValue(char)
      case 'value':
        return this.#beginValue(char)
      case 'next':
        if (char === '}' || char === ']') return this.#leave(char === '}' ? '{' : '[')
        if (char !== ',') return 'invalid'
        this.#expect = this.#open.at(-1) === '{' ? 'key' : 'value'
        return inside
      case 'nothing':
        return 'invalid'
    }
  }

  #beginValue(char: string): CharRole {
    if (char === '{' || char === '[') return this.#enter(char)
    if (char === '"') return this.#beginString(false)
    if (!SCALAR_CHAR.test(char)) return 'invalid'
    this.#mode = 'scalar'
    this.#scalar = char
    return 'value'
  }

  #beginString(isKey: boolean): CharRole {
    this.#mode = 'string'
    this.#stringIsKey = isKey
    return this.#stringRole()
  }

  #enter(bracket: '{' | '['): CharRole {
    const role: CharRole = this.#open.length === 0 ? 'other' : 'value'
    if (this.#open.push(bracket) > MAX_DEPTH) return 'invalid'
    this.#expect = bracket === '{' ? 'first-key' : 'first-item'
    return role
  }

  #leave(bracket: '{' | '['): CharRole {
    if (this.#open.pop() !== bracket) return 'invalid'
    this.#expect = this.#open.length === 0 ? 'nothing' : 'next'
    return this.#open.length === 0 ? 'end' : 'value'
  }
}
