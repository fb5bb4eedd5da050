/** Text completions on the wire: the text as it comes, no parsing. */

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
import { textLogprobs } from './logprobs.ts'

export interface TextAnswerOptions {
  readonly header: AnswerHeader
  readonly numChoices: number
  readonly isStreamed: boolean
  /** Chunks carry `usage: null`, and one at the end carries it. */
  readonly includeUsage: boolean
  readonly tokenizer: Tokenizer | undefined
  readonly wantsLogprobs: boolean
}

interface ChoiceState {
  text: string
  /** Characters sent. */
  offset: number
  logprobs: TokenLogprob[]
  finishReason: WireFinishReason
}

export class TextAnswer implements Answer {
  readonly operation = 'text_completion'
  readonly #options: TextAnswerOptions
  /** What every event of the stream begins and ends with. */
  readonly #eventHead: string
  readonly #eventTail: string
  readonly #choices: readonly ChoiceState[]

  constructor(options: TextAnswerOptions) {
    this.#options = options
    this.#eventHead = `${openJson(this.#header())},"choices":`
    this.#eventTail = options.includeUsage ? ',"usage":null}' : '}'
    this.#choices = Array.from({ length: options.numChoices }, () => ({
      text: '',
      offset: 0,
      logprobs: [],
      finishReason: 'stop',
    }))
  }

  get id(): string {
    return this.#options.header.id
  }

  open(): readonly string[] {
    return []
  }

  push(index: number, chunk: GenerateChunk): readonly string[] {
    const choice = this.#choices[index]
    const { logprobs = [] } = chunk
    for (const logprob of logprobs) choice.logprobs.push(logprob)
    // The token that stops is no part of the text.
    if (typeof chunk.stopReason === 'number') choice.logprobs.splice(-1)
    const reason = wireFinishReason(chunk)
    choice.finishReason = reason ?? choice.finishReason
    if (!this.#options.isStreamed) {
      choice.text += chunk.text
      return []
    }
    const events: string[] = []
    if (chunk.text !== '' || (reason !== undefined && choice.logprobs.length > 0))
      events.push(this.#event(index, chunk.text, this.#takeLogprobs(choice), null))
    choice.offset += chunk.text.length
    if (reason !== undefined) events.push(this.#event(index, '', null, reason))
    return events
  }

  callsTools(): boolean {
    return false
  }

  usageEvent(usage: Usage): string {
    return `${this.#eventHead}[],"usage":${JSON.stringify(usageBody(usage))}}`
  }

  body(usage: Usage): object {
    const choices = this.#choices.map((choice, index) => ({
      index,
      text: choice.text,
      logprobs: this.#takeLogprobs(choice),
      finish_reason: choice.finishReason,
    }))
    return { ...this.#header(), choices, usage: usageBody(usage) }
  }

  #header(): object {
    const { id, created, model, system_fingerprint } = this.#options.header
    return { id, object: 'text_completion', created, model, system_fingerprint }
  }

  #event(
    index: number,
    text: string,
    logprobs: object | null,
    finishReason: string | null,
  ): string {
    const choice = { index, text, logprobs, finish_reason: finishReason }
    return `${this.#eventHead}[${JSON.stringify(choice)}]${this.#eventTail}`
  }

  #takeLogprobs(choice: ChoiceState): object | null {
    const { wantsLogprobs, tokenizer } = this.#options
    if (!wantsLogprobs || tokenizer === undefined) return null
    const logprobs = textLogprobs(tokenizer, choice.logprobs, choice.offset)
    choice.logprobs = []
    return logprobs
  }
}
