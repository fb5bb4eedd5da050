/**
 * The largest chunk whose predicted time keeps every sequence that decodes inside its time per output
 * token. Without such a target: all the tokens of a step.
 */

import type { BudgetPolicy } from '../../policy.ts'

export const milliseconds: BudgetPolicy = {
  name: 'milliseconds',
  tokens(load) {
    const { numDecodes, decodeContext, prefillStart, tpotTargetMs, costs } = load
    const most = Math.min(load.maxNumBatchedTokens, numDecodes + load.pendingTokens)
    if (tpotTargetMs === Number.POSITIVE_INFINITY) return load.maxNumBatchedTokens
    const fits = (tokens: number) => {
      const chunk = tokens - numDecodes
      const context = decodeContext + chunk * (prefillStart + (chunk + 1) / 2)
      return costs.predictMs(tokens, context, 0) <= tpotTargetMs
    }
    // The time grows with the tokens: low fits (or nothing does), high does not.
    let low = numDecodes
    let high = most + 1
    while (high - low > 1) {
      const middle = (low + high) >>> 1
      if (fits(middle)) low = middle
      else high = middle
    }
    return low
  },
}
