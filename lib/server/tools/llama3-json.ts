/**
 * Llama 3: the answer is `{"name": …, "parameters": {…}}`, several with `;` between. Nothing marks
 * it, so only objects that name an offered tool are calls; any other text is content to its end.
 */

import type { GrammarBuilder } from '../../grammar/index.ts'
import { jsonCall, MAX_CALLS } from './call-grammar.ts'
import { CallReader } from './call-reader.ts'
import {
  type CallRules,
  isOneToken,
  type OutputParser,
  type OutputPart,
  type ToolFormat,
} from './types.ts'

const SEPARATOR = /[\s;]/

class Llama3Parser implements OutputParser {
  readonly #names: ReadonlySet<string>
  #state: 'before' | 'call' | 'content' | 'skip' = 'before'
  #hasCalls = false
  #reader = new CallReader()
  #raw = ''

  constructor(names: ReadonlySet<string>) {
    this.#names = names
  }

  push(text: string): OutputPart[] {
    const parts: OutputPart[] = []
    for (let at = 0; at < text.length && this.#state !== 'skip'; at++) {
      if (this.#state === 'content') {
        parts.push({ kind: 'content', text: text.slice(at) })
        break
      }
      this.#read(text[at], parts)
    }
    return parts
  }

  finish(): OutputPart[] {
    const isText = this.#state === 'call' ? !this.#reader.isStarted : !this.#hasCalls
    return isText && this.#raw !== '' ? [{ kind: 'content', text: this.#raw }] : []
  }

  #read(char: string, parts: OutputPart[]): void {
    this.#raw += char
    if (this.#state === 'before') {
      if (SEPARATOR.test(char)) return
      this.#state = 'call'
      this.#reader = new CallReader({ names: this.#names, needsArguments: true })
    }
    const state = this.#reader.push(char, parts)
    if (state === 'open') return
    if (state === 'done') {
      this.#state = 'before'
      this.#hasCalls = true
      this.#raw = ''
    } else if (this.#reader.isStarted) this.#state = 'skip'
    else {
      this.#state = 'content'
      parts.push({ kind: 'content', text: this.#raw })
      this.#raw = ''
    }
  }
}

function addRules(builder: GrammarBuilder, rules: CallRules): string {
  const call = jsonCall(builder, rules.calls, 'parameters')
  const calls = rules.isParallel ? `${call} ("; " ${call}){0,${MAX_CALLS - 1}}` : call
  if (rules.otherwise === undefined) return calls
  if (rules.otherwise === 'text')
    return `${calls} | ${builder.noneOf('{; \n\t')} ${builder.noneOf('')}*`
  return `${rules.otherwise.expression} | ${calls}`
}

export const llama3Format: ToolFormat = {
  name: 'llama3',
  addRules,
  markers: [],
  detect: (tokenizer) => isOneToken(tokenizer, '<|python_tag|>'),
  create: (names) => new Llama3Parser(names),
}
