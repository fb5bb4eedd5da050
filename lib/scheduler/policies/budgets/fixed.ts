/** The same number of tokens in every step, decodes first and prompts with the rest (Sarathi-Serve). */

import type { BudgetPolicy } from '../../policy.ts'

export const fixed: BudgetPolicy = {
  name: 'fixed',
  tokens: (load) => load.maxNumBatchedTokens,
}
