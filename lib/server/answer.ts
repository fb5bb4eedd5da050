/**
 * What a completion looks like on the wire, streamed and whole. Both APIs have one: chat-answer.ts
 * and text-answer.ts; routes/run-completion.ts feeds them.
 */

import type { GenerateChunk, Usage } from '../engine/types.ts'

/** Events are JSON texts: most of one is the same for a whole stream, and is written out once. */
export interface Answer {
  readonly operation: 'chat' | 'text_completion'
  readonly id: string
  /** Events before the first token. */
  open(): readonly string[]
  /** Takes a chunk of a choice; the events it becomes, none when the answer is not streamed. */
  push(index: number, chunk: GenerateChunk): readonly string[]
  /** The choice has begun to call a tool. */
  callsTools(index: number): boolean
  /** The event with the usage, after all choices have ended. */
  usageEvent(usage: Usage): string
  /** The whole answer. */
  body(usage: Usage): object
}

export interface AnswerHeader {
  readonly id: string
  readonly created: number
  readonly model: string
  readonly system_fingerprint: string
}

/** An object without its closing brace, so that more members can follow as text. */
export function openJson(members: object): string {
  return JSON.stringify(members).slice(0, -1)
}

export function usageBody(usage: Usage): object {
  const { promptTokens, completionTokens, cachedTokens } = usage
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  }
}

export type WireFinishReason = 'stop' | 'length'

/** A request that was aborted ends with an error and never comes here. */
export function wireFinishReason(chunk: GenerateChunk): WireFinishReason | undefined {
  if (chunk.finishReason === undefined) return undefined
  return chunk.finishReason === 'length' ? 'length' : 'stop'
}
