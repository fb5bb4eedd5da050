/**
 * GenerateOutput: turns the tokens of one sequence into chunks: text that is complete, stop tokens
 * and stop strings, log-probabilities. Knows nothing of steps or schedules.
 */

import type { Detokenizer } from '../tokenizer/index.ts'
import type { Sampling } from './sampling.ts'
import { StopMatcher } from './stop-strings.ts'
import type { FinishReason, GenerateChunk, TokenLogprob } from './types.ts'

export class GenerateOutput {
  readonly #sampling: Sampling
  readonly #detokenizer: Detokenizer | undefined
  /** The text of the token that stops is left out. */
  readonly #hidesStopToken: boolean
  readonly #matcher: StopMatcher
  #numTokens = 0

  constructor(
    sampling: Sampling,
    detokenizer: Detokenizer | undefined,
    skipSpecialTokens: boolean,
  ) {
    this.#sampling = sampling
    this.#detokenizer = detokenizer
    this.#hidesStopToken = skipSpecialTokens
    this.#matcher = new StopMatcher(sampling.stopStrings)
  }

  get numTokens(): number {
    return this.#numTokens
  }

  /** The token's chunk; with a finishReason the last one. */
  push(token: number, logprob: TokenLogprob | undefined): GenerateChunk {
    const { minTokens, maxTokens, stopTokens } = this.#sampling
    this.#numTokens++
    const mayStop = this.#numTokens > minTokens
    const stopped = mayStop && stopTokens.has(token)
    let text = stopped && this.#hidesStopToken ? '' : (this.#detokenizer?.push([token]) ?? '')
    const last = stopped || this.#numTokens === maxTokens
    if (last) text += this.#detokenizer?.finish() ?? ''

    let stopReason: string | number | undefined = stopped ? token : undefined
    if (mayStop) {
      const match = this.#matcher.push(text)
      text = match.text
      if (match.stop !== undefined) stopReason = match.stop
      else if (last) text += this.#matcher.finish()
    }
    const finishReason: FinishReason | undefined =
      stopReason !== undefined ? 'stop' : last ? 'length' : undefined
    if (finishReason === undefined && logprob === undefined) return { text, tokens: [token] }
    return {
      text,
      tokens: [token],
      ...(logprob !== undefined && { logprobs: [logprob] }),
      ...(finishReason !== undefined && { finishReason }),
      ...(stopReason !== undefined && { stopReason }),
    }
  }
}
