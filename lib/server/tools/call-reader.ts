/**
 * CallReader: reads one `{"name": …, "arguments": {…}}` object as its characters arrive. The name
 * comes out as soon as it is known and arguments have begun, arguments as they are written.
 */

import { JsonScanner } from './json-scanner.ts'
import type { OutputPart } from './types.ts'

export interface CallReaderOptions {
  /** Only these names make a call. */
  readonly names?: ReadonlySet<string>
  /** An object without arguments is no call. */
  readonly needsArguments?: boolean
}

export type ReaderState = 'open' | 'done' | 'invalid'

export class CallReader {
  readonly #scanner = new JsonScanner()
  readonly #options: CallReaderOptions
  #state: ReaderState = 'open'
  #role: 'key' | 'value' | 'other' = 'other'
  #key = ''
  #field = ''
  #value = ''
  #name: string | undefined
  /** Arguments before the name is known. */
  #early = ''
  #hasArguments = false
  #isStarted = false
  /** Ended values that must not come twice. */
  readonly #seen = new Set<string>()

  constructor(options: CallReaderOptions = {}) {
    this.#options = options
  }

  get state(): ReaderState {
    return this.#state
  }

  /** The call has been announced: it cannot become content any more. */
  get isStarted(): boolean {
    return this.#isStarted
  }

  push(char: string, parts: OutputPart[]): ReaderState {
    const role = this.#scanner.push(char)
    if (role === 'invalid') this.#state = 'invalid'
    else {
      if (this.#role === 'value' && role !== 'value') this.#endValue(parts)
      if (role === 'key') this.#key = this.#role === 'key' ? this.#key + char : char
      else if (role === 'value') this.#readValue(char, parts)
      else if (role === 'end' && this.#state === 'open') this.#end(parts)
      if (role !== 'end') this.#role = role
    }
    return this.#state
  }

  #readValue(char: string, parts: OutputPart[]): void {
    if (this.#role !== 'value') {
      this.#value = ''
      const key = String(JSON.parse(this.#key))
      this.#field = key === 'parameters' ? 'arguments' : key
      if (this.#seen.has(this.#field)) this.#state = 'invalid'
      if (this.#field === 'arguments') {
        if (char !== '{' && char !== '"' && char !== 'n') this.#state = 'invalid'
        this.#hasArguments = true
      }
    }
    if (this.#field === 'arguments' && (this.#value[0] ?? char) === '{') {
      this.#value ||= char
      this.#argue(char, parts)
    } else if (this.#field === 'name' || this.#field === 'arguments') this.#value += char
  }

  /** An object was passed on as it came; text and null are read when they end. */
  #endValue(parts: OutputPart[]): void {
    if (this.#field !== 'name' && this.#field !== 'arguments') return
    this.#seen.add(this.#field)
    if (this.#field === 'arguments') {
      if (this.#value[0] === '{') return
      const value: unknown = JSON.parse(this.#value)
      this.#argue(typeof value === 'string' ? value : '{}', parts)
      return
    }
    const name: unknown = JSON.parse(this.#value)
    const { names } = this.#options
    if (typeof name !== 'string' || name === '' || (names !== undefined && !names.has(name))) {
      this.#state = 'invalid'
      return
    }
    this.#name = name
    if (this.#early !== '') this.#argue('', parts)
  }

  #argue(text: string, parts: OutputPart[]): void {
    if (this.#state !== 'open') return
    this.#early += text
    if (this.#name === undefined) return
    this.#start(parts)
    if (this.#early !== '') parts.push({ kind: 'arguments', text: this.#early })
    this.#early = ''
  }

  #start(parts: OutputPart[]): void {
    if (this.#isStarted || this.#name === undefined) return
    this.#isStarted = true
    parts.push({ kind: 'call', name: this.#name })
  }

  #end(parts: OutputPart[]): void {
    if (this.#name === undefined || (this.#options.needsArguments && !this.#hasArguments)) {
      this.#state = 'invalid'
      return
    }
    if (!this.#hasArguments) this.#argue('{}', parts)
    this.#start(parts)
    this.#state = 'done'
  }
}
