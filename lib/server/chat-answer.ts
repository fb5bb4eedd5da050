/**
 * Chat completions on the wire. Every choice runs its text through an output parser; what the parser
 * makes of it becomes deltas, or the fields of a message.
 */

import { randomBytes } from 'node:crypto'
import type { GenerateChunk, TokenLogprob, Usage } from '../engine/types.ts'
import type { Tokenizer } from '../tokenizer/index.ts'
import {
  type Answer,
  type AnswerHeader,
  openJson,
  usageBody,
  type WireFinishReason,
  wireFinishReason,
} from './answer.ts'
import { chatLogprobs } from './logprobs.ts'
import type { OutputParser, OutputPart } from './tools/index.ts'

export interface ChatAnswerOptions {
  readonly header: AnswerHeader
  readonly numChoices: number
  readonly isStreamed: boolean
  /** Chunks carry `usage: null`, and one at the end carries it. */
  readonly includeUsage: boolean
  readonly tokenizer: Tokenizer
  readonly createParser: () => OutputParser
  /** Special tokens are left in the text; the token that stops is taken away here. */
  readonly keepsSpecialTokens: boolean
  readonly parallelCalls: boolean
  readonly wantsLogprobs: boolean
  readonly topLogprobs: number
}

interface Call {
  readonly id: string
  readonly name: string
  arguments: string
}

interface ChoiceState {
  readonly parser: OutputParser
  content: string
  reasoning: string
  readonly calls: Call[]
  numCalls: number
  /** Calls beyond the first are not wanted. */
  isCallDropped: boolean
  /** Not sent yet (streamed), or all of them (whole). */
  logprobs: TokenLogprob[]
  finishReason: WireFinishReason
}

/** What follows the delta of almost every event. */
const NOTHING_MORE = ',"logprobs":null,"finish_reason":null}]'

type Delta = Readonly<Record<string, unknown>>

export class ChatAnswer implements Answer {
  readonly operation = 'chat'
  readonly #options: ChatAnswerOptions
  /** What every event of the stream begins and ends with. */
  readonly #eventHead: string
  readonly #eventTail: string
  readonly #choices: readonly ChoiceState[]

  constructor(options: ChatAnswerOptions) {
    this.#options = options
    this.#eventHead = `${openJson(this.#header('chat.completion.chunk'))},"choices":`
    this.#eventTail = options.includeUsage ? ',"usage":null}' : '}'
    this.#choices = Array.from({ length: options.numChoices }, () => ({
      parser: options.createParser(),
      content: '',
      reasoning: '',
      calls: [],
      numCalls: 0,
      isCallDropped: false,
      logprobs: [],
      finishReason: 'stop',
    }))
  }

  get id(): string {
    return this.#options.header.id
  }

  open(): readonly string[] {
    return this.#choices.map((choice, index) =>
      this.#event(choice, index, { role: 'assistant', content: '' }),
    )
  }

  push(index: number, chunk: GenerateChunk): readonly string[] {
    const choice = this.#choices[index]
    const isLast = chunk.finishReason !== undefined
    const parts = choice.parser.push(this.#visibleText(chunk))
    if (isLast) parts.push(...choice.parser.finish())
    for (const logprob of this.#visibleLogprobs(chunk)) choice.logprobs.push(logprob)
    choice.finishReason = wireFinishReason(chunk) ?? choice.finishReason
    const events: string[] = []
    for (const part of parts) {
      if (!this.#isWanted(choice, part)) continue
      if (this.#options.isStreamed)
        events.push(this.#event(choice, index, this.#delta(choice, part)))
      else this.#keep(choice, part)
    }
    if (isLast && this.#options.isStreamed) {
      if (choice.logprobs.length > 0) events.push(this.#event(choice, index, { content: '' }))
      events.push(this.#event(choice, index, {}, this.#finishReason(choice)))
    }
    return events
  }

  callsTools(index: number): boolean {
    return this.#choices[index].numCalls > 0
  }

  usageEvent(usage: Usage): string {
    return `${this.#eventHead}[],"usage":${JSON.stringify(usageBody(usage))}}`
  }

  body(usage: Usage): object {
    const choices = this.#choices.map((choice, index) => ({
      index,
      message: {
        role: 'assistant',
        content: choice.content === '' && choice.calls.length > 0 ? null : choice.content,
        refusal: null,
        ...(choice.reasoning !== '' && { reasoning_content: choice.reasoning }),
        ...(choice.calls.length > 0 && {
          tool_calls: choice.calls.map((call) => ({
            id: call.id,
            type: 'function',
            function: { name: call.name, arguments: call.arguments },
          })),
        }),
      },
      logprobs: this.#takeLogprobs(choice),
      finish_reason: this.#finishReason(choice),
    }))
    return { ...this.#header('chat.completion'), choices, usage: usageBody(usage) }
  }

  #header(object: string): object {
    const { id, created, model, system_fingerprint } = this.#options.header
    return { id, object, created, model, system_fingerprint }
  }

  #event(
    choice: ChoiceState,
    index: number,
    delta: Delta,
    finishReason: string | null = null,
  ): string {
    const logprobs = this.#takeLogprobs(choice)
    const rest =
      logprobs === null && finishReason === null
        ? NOTHING_MORE
        : `,"logprobs":${JSON.stringify(logprobs)},"finish_reason":${JSON.stringify(finishReason)}}]`
    return `${this.#eventHead}[{"index":${index},"delta":${JSON.stringify(delta)}${rest}${this.#eventTail}`
  }

  #finishReason(choice: ChoiceState): string {
    return choice.finishReason === 'stop' && choice.numCalls > 0
      ? 'tool_calls'
      : choice.finishReason
  }

  #takeLogprobs(choice: ChoiceState): object | null {
    const { wantsLogprobs, topLogprobs, tokenizer, isStreamed } = this.#options
    if (!wantsLogprobs || (isStreamed && choice.logprobs.length === 0)) return null
    const content = chatLogprobs(tokenizer, choice.logprobs, topLogprobs)
    choice.logprobs = []
    return { content, refusal: null }
  }

  #visibleText({ text, stopReason }: GenerateChunk): string {
    const { keepsSpecialTokens, tokenizer } = this.#options
    if (!keepsSpecialTokens || typeof stopReason !== 'number') return text
    const mark = tokenizer.decode([stopReason], { skipSpecialTokens: false })
    return mark !== '' && text.endsWith(mark) ? text.slice(0, -mark.length) : text
  }

  /** The token that stops is no part of the content. */
  #visibleLogprobs({ logprobs = [], stopReason }: GenerateChunk): readonly TokenLogprob[] {
    return typeof stopReason === 'number' ? logprobs.slice(0, -1) : logprobs
  }

  /** Counts calls as they begin. */
  #isWanted(choice: ChoiceState, part: OutputPart): boolean {
    if (part.kind === 'call') {
      choice.isCallDropped = choice.numCalls > 0 && !this.#options.parallelCalls
      if (!choice.isCallDropped) choice.numCalls++
    }
    return !(choice.isCallDropped && (part.kind === 'call' || part.kind === 'arguments'))
  }

  #delta(choice: ChoiceState, part: OutputPart): Delta {
    switch (part.kind) {
      case 'content':
        return { content: part.text }
      case 'reasoning':
        return { reasoning_content: part.text }
      case 'call': {
        const call = { id: callId(), name: part.name, arguments: '' }
        const index = choice.calls.push(call) - 1
        const { id, name } = call
        return {
          tool_calls: [{ index, id, type: 'function', function: { name, arguments: '' } }],
        }
      }
      case 'arguments': {
        const index = choice.calls.length - 1
        return { tool_calls: [{ index, function: { arguments: part.text } }] }
      }
    }
  }

  #keep(choice: ChoiceState, part: OutputPart): void {
    switch (part.kind) {
      case 'content':
        choice.content += part.text
        break
      case 'reasoning':
        choice.reasoning += part.text
        break
      case 'call':
        choice.calls.push({ id: callId(), name: part.name, arguments: '' })
        break
      case 'arguments':
        choice.calls[choice.calls.length - 1].arguments += part.text
    }
  }
}

function callId(): string {
  return `call_${randomBytes(12).toString('hex')}`
}
