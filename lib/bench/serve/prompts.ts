/**
 * Prompts of a wanted length in tokens for a server whose tokenizer is not known: random words, as many
 * as a probe says make that many tokens. No two prompts begin alike, so no prefix cache serves them.
 */

import { createRandom } from '../../workload/index.ts'

const WORDS =
  'time year people way day man thing woman life child world school state family student group country problem hand part place case week company system program question work government number night point home water room mother area money story fact month lot right study book eye job word business issue side kind head house service friend father power hour game line end member law car city'.split(
    ' ',
  )

/** Words of the probe from which tokens per word are taken. */
export const PROBE_WORDS = 200

export interface TokensPerWord {
  readonly perWord: number
  /** Around any prompt: what a chat template adds. */
  readonly fixed: number
}

/** From the prompt lengths of two probes, of PROBE_WORDS and of one word. */
export function fitTokensPerWord(longTokens: number, shortTokens: number): TokensPerWord {
  const perWord = Math.max(0.25, (longTokens - shortTokens) / (PROBE_WORDS - 1))
  return { perWord, fixed: Math.max(0, shortTokens - perWord) }
}

export function writePrompt(numWords: number, seed: number): string {
  const random = createRandom(seed)
  return Array.from({ length: numWords }, () => WORDS[random.below(WORDS.length)]).join(' ')
}

export function wordsFor(numTokens: number, { perWord, fixed }: TokensPerWord): number {
  return Math.max(1, Math.round((numTokens - fixed) / perWord))
}
