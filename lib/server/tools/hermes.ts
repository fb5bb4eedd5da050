/**
 * Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them, text
 * around them. What stands between the marks and is no call stays content.
 */

import type { GrammarBuilder } from '../../grammar/index.ts'
import { jsonCall, MAX_CALLS, textWithout } from './call-grammar.ts'
import { CallReader } from './call-reader.ts'
import { ContentWriter } from './content-writer.ts'
import { MarkerScanner } from './marker-scanner.ts'
import {
  type CallRules,
  isOneToken,
  type OutputParser,
  type OutputPart,
  type ToolFormat,
} from './types.ts'

const OPEN = '<tool_call>'
const CLOSE = '</tool_call>'

class HermesParser implements OutputParser {
  readonly #scanner = new MarkerScanner()
  readonly #content = new ContentWriter()
  #state: 'content' | 'call' | 'close' = 'content'
  #reader = new CallReader()
  /** The call so far, as long as it may turn out to be content. */
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
    else if (this.#state === 'call' && !this.#reader.isStarted)
      this.#content.write(this.#raw, parts)
    this.#content.finish(parts)
    return parts
  }

  /** False: nothing more can be said of what is there. */
  #advance(parts: OutputPart[]): boolean {
    switch (this.#state) {
      case 'content': {
        const { text, marker } = this.#scanner.next([OPEN])
        this.#content.write(text, parts)
        if (marker !== undefined) this.#open()
        return marker !== undefined
      }
      case 'call': {
        const char = this.#scanner.take()
        if (char === undefined) return false
        this.#read(char, parts)
        return true
      }
      case 'close': {
        // A model that forgets to close a call may begin the next one.
        const { marker } = this.#scanner.next([CLOSE, OPEN])
        if (marker === OPEN) this.#open()
        else if (marker === CLOSE) this.#state = 'content'
        return marker !== undefined
      }
    }
  }

  #open(): void {
    this.#state = 'call'
    this.#reader = new CallReader()
    this.#raw = OPEN
  }

  #read(char: string, parts: OutputPart[]): void {
    const wasStarted = this.#reader.isStarted
    if (!wasStarted) this.#raw += char
    const state = this.#reader.push(char, parts)
    if (!wasStarted && this.#reader.isStarted) this.#content.call()
    if (state === 'open') return
    if (state === 'done' || this.#reader.isStarted) this.#state = 'close'
    else {
      this.#content.write(this.#raw, parts)
      this.#state = 'content'
    }
  }
}

function addRules(builder: GrammarBuilder, rules: CallRules): string {
  const line = '"\\n"?'
  const [open, close] = [builder.literal(OPEN), builder.literal(CLOSE)]
  const body = jsonCall(builder, rules.calls, 'arguments')
  const call = builder.rule(`${open} ${line} ${body} ${line} ${close}`)
  const calls = rules.isParallel ? `${call} (${line} ${call}){0,${MAX_CALLS - 1}}` : call
  if (rules.otherwise === undefined) return calls
  if (rules.otherwise === 'text') return `${textWithout(builder, OPEN)} (${calls})?`
  return `${rules.otherwise.expression} | ${calls}`
}

export const hermesFormat: ToolFormat = {
  name: 'hermes',
  addRules,
  markers: [OPEN, CLOSE],
  detect: (tokenizer) => isOneToken(tokenizer, OPEN),
  create: () => new HermesParser(),
}
