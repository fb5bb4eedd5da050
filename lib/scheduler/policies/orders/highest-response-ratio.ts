/**
 * Highest response ratio next (Brinch Hansen, 1971) with tokens as the unit of time: (waited +
 * service) / service, where waited counts the tokens processed for anybody since the arrival. A slow
 * machine and a fast one order alike, and long requests win in the end.
 */

import type { OrderPolicy } from '../../policy.ts'

export const highestResponseRatio: OrderPolicy = {
  name: 'hrrn',
  isFixed: false,
  key(sequence, { plannedTokens, expectedOutput }) {
    const output = Math.min(sequence.maxLen - sequence.promptLen, expectedOutput)
    return (sequence.arrivalTokens - plannedTokens) / (sequence.promptLen + output)
  },
}
