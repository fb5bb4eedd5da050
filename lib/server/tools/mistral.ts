/**
 * Mistral: `[TOOL_CALLS]` and then a list of `{"name": …, "arguments": {…}}` (up to tokenizer v7),
 * or `name[ARGS]{…}` for every call (from v11; the call's own id between `[CALL_ID]` and `[ARGS]`
 * is left out).
 */

import type { GrammarBuilder } from '../../grammar/index.ts'
import { jsonCall, MAX_CALLS, textWithout } from './call-grammar.ts'
import { CallReader } from './call-reader.ts'
import { ContentWriter } from './content-writer.ts'
import { JsonScanner } from './json-scanner.ts'
import { MarkerScanner } from './marker-scanner.ts'
import {
  type CallRules,
  isOneToken,
  type OutputParser,
  type OutputPart,
  type ToolFormat,
} from './types.ts'

const CALLS = '[TOOL_CALLS]'
const ARGS = '[ARGS]'
const CALL_ID = '[CALL_ID]'
const MAX_NAME = 256

class MistralParser implements OutputParser {
  readonly #scanner = new MarkerScanner()
  readonly #content = new ContentWriter()
  #state: 'content' | 'head' | 'list' | 'call' | 'arguments' | 'broken' = 'content'
  #reader = new CallReader()
  #json = new JsonScanner()
  #raw = ''

  push(text: string): OutputPart[] {
    const parts: OutputPart[] = []
    this.#scanner.push(text)
    while (this.#advance(parts));
    return parts
  }

  finish(): OutputPart[] {
    const parts: OutputPart[] = []
    if (this.#state === 'content') this.#content.write(this.#scanner.rest(), parts)
    else if (this.#state === 'head' || (this.#state === 'call' && !this.#reader.isStarted))
      this.#content.write(this.#raw, parts)
    this.#content.finish(parts)
    return parts
  }

  #advance(parts: OutputPart[]): boolean {
    if (this.#state === 'content' || this.#state === 'broken') {
      const { text, marker } = this.#scanner.next([CALLS])
      if (this.#state === 'content') this.#content.write(text, parts)
      if (marker === undefined) return false
      this.#state = 'head'
      this.#raw = CALLS
      return true
    }
    const char = this.#scanner.take()
    if (char === undefined) return false
    if (this.#state === 'head') this.#readHead(char, parts)
    else if (this.#state === 'list') this.#readList(char)
    if (this.#state === 'call') this.#readCall(char, parts)
    else if (this.#state === 'arguments') this.#readArguments(char, parts)
    return true
  }

  /** After the mark: a list, or a name up to its arguments. */
  #readHead(char: string, parts: OutputPart[]): void {
    const written = this.#raw.slice(CALLS.length)
    if (char === '[' && written.trim() === '') {
      this.#state = 'list'
      return
    }
    if (char === '{') {
      const name = written.split(CALL_ID)[0].replace(ARGS, '').trim()
      if (/^[^\s[\]"]+$/.test(name)) {
        this.#content.call()
        parts.push({ kind: 'call', name })
        this.#json = new JsonScanner()
        this.#state = 'arguments'
        return
      }
    }
    this.#raw += char
    if (char !== '{' && written.length <= MAX_NAME) return
    this.#content.write(this.#raw, parts)
    this.#state = 'content'
  }

  #readList(char: string): void {
    if (char === '{') {
      this.#reader = new CallReader()
      this.#raw = ''
      this.#state = 'call'
    } else if (char === ']') this.#state = 'content'
    else if (!/[\s,]/.test(char)) this.#state = 'broken'
  }

  #readCall(char: string, parts: OutputPart[]): void {
    const wasStarted = this.#reader.isStarted
    if (!wasStarted) this.#raw += char
    const state = this.#reader.push(char, parts)
    if (!wasStarted && this.#reader.isStarted) this.#content.call()
    if (state === 'open') return
    if (state === 'done') this.#state = 'list'
    else if (this.#reader.isStarted) this.#state = 'broken'
    else {
      this.#content.write(this.#raw, parts)
      this.#state = 'content'
    }
  }

  #readArguments(char: string, parts: OutputPart[]): void {
    const role = this.#json.push(char)
    if (role === 'invalid') this.#state = 'broken'
    else parts.push({ kind: 'arguments', text: char })
    if (role === 'end') this.#state = 'content'
  }
}

/** As a list, which every version of the format reads. */
function addRules(builder: GrammarBuilder, rules: CallRules): string {
  const call = jsonCall(builder, rules.calls, 'arguments')
  const more = rules.isParallel ? `("," " "? ${call}){0,${MAX_CALLS - 1}}` : ''
  const calls = `${builder.literal(CALLS)} " "? "[" ${call} ${more} "]"`
  if (rules.otherwise === undefined) return calls
  if (rules.otherwise === 'text') return `${textWithout(builder, CALLS)} (${calls})?`
  return `${rules.otherwise.expression} | ${calls}`
}

export const mistralFormat: ToolFormat = {
  name: 'mistral',
  addRules,
  markers: [CALLS, ARGS, CALL_ID],
  detect: (tokenizer) => isOneToken(tokenizer, CALLS),
  create: () => new MistralParser(),
}
