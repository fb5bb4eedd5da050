/**
 * gpt-oss (OpenAI's harmony format): messages with a header, `<|channel|>NAME …<|message|>`, and a
 * body. `analysis` is reasoning, a message to `functions.NAME` a tool call, any other one content.
 */

import type { ChatMessage } from '../../engine/types.ts'
import type { GrammarBuilder } from '../../grammar/index.ts'
import { callArguments } from './call-grammar.ts'
import { MarkerScanner } from './marker-scanner.ts'
import {
  type CallRules,
  isOneToken,
  type OutputParser,
  type OutputPart,
  type ToolFormat,
} from './types.ts'

const MESSAGE = '<|message|>'
const CHANNEL = '<|channel|>'
const START = '<|start|>'
const BODY_ENDS = ['<|end|>', '<|call|>', '<|return|>', START, CHANNEL]
const MAX_HEADER = 1024

type BodyKind = 'content' | 'reasoning' | 'arguments'

class GptOssParser implements OutputParser {
  readonly #scanner = new MarkerScanner()
  #header: string | undefined = ''
  #kind: BodyKind = 'content'

  push(text: string): OutputPart[] {
    const parts: OutputPart[] = []
    this.#scanner.push(text)
    while (this.#advance(parts));
    return parts
  }

  finish(): OutputPart[] {
    const parts: OutputPart[] = []
    const rest = this.#scanner.rest()
    if (this.#header === undefined) this.#write(rest, parts)
    // A header that never became one, and says so from the start, is an answer without a format.
    else if (!this.#header.includes('<|')) this.#write(this.#header + rest, parts, 'content')
    return parts
  }

  #advance(parts: OutputPart[]): boolean {
    if (this.#header === undefined) {
      const { text, marker } = this.#scanner.next(BODY_ENDS)
      this.#write(text, parts)
      if (marker !== undefined) this.#header = marker === CHANNEL ? CHANNEL : ''
      return marker !== undefined
    }
    const { text, marker } = this.#scanner.next([MESSAGE])
    this.#header += text
    if (marker === undefined) return false
    this.#begin(this.#header.slice(-MAX_HEADER), parts)
    return true
  }

  #begin(header: string, parts: OutputPart[]): void {
    this.#header = undefined
    const tool = /\bto=functions\.([\w.-]{1,256})/.exec(header)?.[1]
    const channel = /<\|channel\|>\s*(\w+)/.exec(header)?.[1]
    if (tool !== undefined) {
      parts.push({ kind: 'call', name: tool })
      this.#kind = 'arguments'
    } else this.#kind = channel === 'analysis' ? 'reasoning' : 'content'
  }

  #write(text: string, parts: OutputPart[], kind: BodyKind = this.#kind): void {
    if (text !== '') parts.push({ kind, text })
  }
}

/** Reasoning first, if the model wants to, and the start of the message behind it. */
function thinking(builder: GrammarBuilder): string {
  const text = `${builder.noneOf('<')}*`
  const literal = (marks: string) => builder.literal(marks)
  return `(${literal(`${CHANNEL}analysis${MESSAGE}`)} ${text} ${literal(`<|end|>${START}assistant`)})?`
}

/** One call: the token behind it ends the output. */
function addRules(builder: GrammarBuilder, rules: CallRules): string {
  const choices = rules.calls.map((call) => {
    const header = `${CHANNEL}commentary to=functions.${call.name} <|constrain|>json${MESSAGE}`
    return `${builder.literal(header)} ${callArguments(builder, call)}`
  })
  const calls = builder.rule(choices.join(' | '))
  const head = thinking(builder)
  if (rules.otherwise === undefined) return `${head} ${calls}`
  const { otherwise } = rules
  const answer = otherwise === 'text' ? `${builder.noneOf('<')}*` : otherwise.expression
  const final = builder.literal(`${CHANNEL}final${MESSAGE}`)
  return `${head} (${calls} | ${final} (${answer}))`
}

function addAnswer(builder: GrammarBuilder, expression: string): string {
  return `${thinking(builder)} ${builder.literal(`${CHANNEL}final${MESSAGE}`)} (${expression})`
}

/** The template looks into every content that is there, null or not, and has its own word for reasoning. */
function templateMessage({
  content,
  reasoning_content: reasoning,
  ...message
}: ChatMessage): ChatMessage {
  if (content !== undefined && content !== null) return { ...message, content }
  return { ...message, ...(typeof reasoning === 'string' && { thinking: reasoning }) }
}

export const gptOssFormat: ToolFormat = {
  name: 'gpt-oss',
  isAlwaysUsed: true,
  addRules,
  addAnswer,
  templateMessage,
  markers: [MESSAGE, '<|constrain|>', ...BODY_ENDS],
  detect: (tokenizer) => isOneToken(tokenizer, CHANNEL) && isOneToken(tokenizer, MESSAGE),
  create: () => new GptOssParser(),
}
