/** Log-probabilities in the shapes of OpenAI's two completion APIs. */

import type { TokenLogprob } from '../engine/types.ts'
import type { Tokenizer } from '../tokenizer/index.ts'

/** Stands for minus infinity, which JSON cannot say. */
const LOWEST = -9999

interface Entry {
  readonly token: string
  readonly logprob: number
  /** UTF-8 of the token; null where it is part of a character only. */
  readonly bytes: readonly number[] | null
}

export interface ChatLogprob extends Entry {
  readonly top_logprobs: readonly Entry[]
}

const clamp = (logprob: number): number => Math.min(0, Math.max(LOWEST, logprob))
const textOf = (tokenizer: Tokenizer, token: number): string =>
  tokenizer.decode([token], { skipSpecialTokens: false })

function entry(tokenizer: Tokenizer, token: number, logprob: number): Entry {
  const text = textOf(tokenizer, token)
  const bytes = text.includes('\ufffd') ? null : [...Buffer.from(text)]
  return { token: text, logprob: clamp(logprob), bytes }
}

export function chatLogprobs(
  tokenizer: Tokenizer,
  logprobs: readonly TokenLogprob[],
  numTop: number,
): ChatLogprob[] {
  return logprobs.map(({ token, logprob, top }) => ({
    ...entry(tokenizer, token, logprob),
    top_logprobs: top.slice(0, numTop).map((other) => entry(tokenizer, other.token, other.logprob)),
  }))
}

export interface TextLogprobs {
  readonly tokens: readonly string[]
  readonly token_logprobs: readonly number[]
  readonly top_logprobs: readonly Readonly<Record<string, number>>[]
  /** Where each token begins in the text, characters. */
  readonly text_offset: readonly number[]
}

/** `offset`: of the first token. */
export function textLogprobs(
  tokenizer: Tokenizer,
  logprobs: readonly TokenLogprob[],
  offset: number,
): TextLogprobs {
  const tokens = logprobs.map(({ token }) => textOf(tokenizer, token))
  let at = offset
  return {
    tokens,
    token_logprobs: logprobs.map(({ logprob }) => clamp(logprob)),
    top_logprobs: logprobs.map(({ top }) =>
      Object.fromEntries(
        top.map((other) => [textOf(tokenizer, other.token), clamp(other.logprob)]),
      ),
    ),
    text_offset: tokens.map((text) => {
      const start = at
      at += text.length
      return start
    }),
  }
}
