/**
 * Exact dense fill (NanoFlow): prompts are cut so that the rows of the dense matmuls are whole tiles,
 * as many as fit. What does not fill a tile waits for the next step, unless it is all there is.
 */

import type { BudgetPolicy } from '../../policy.ts'

/** Rows of a matmul tile. */
const TILE = 128

export const dense: BudgetPolicy = {
  name: 'dense',
  tokens({ maxNumBatchedTokens, numDecodes, pendingTokens }) {
    const wanted = Math.min(maxNumBatchedTokens, numDecodes + pendingTokens)
    const whole = Math.floor(wanted / TILE) * TILE
    return whole > numDecodes ? whole : wanted
  },
}
