/**
 * Least work left first: what is not computed of the prompt, and the output that is expected of it.
 * With ageing: a millisecond of waiting is worth a token, so that a request of n tokens is overtaken
 * by those that come within n ms only.
 */

import type { OrderPolicy } from '../../policy.ts'

const TOKENS_PER_MS = 1

export const shortestRemaining: OrderPolicy = {
  name: 'shortest-remaining',
  isFixed: true,
  key(sequence, { expectedOutput }) {
    const prompt = sequence.numTokens - sequence.numComputed
    const output = Math.min(sequence.maxLen - sequence.numTokens, expectedOutput)
    return prompt + output + TOKENS_PER_MS * sequence.arrivalMs
  },
}
