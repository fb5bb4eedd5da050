/**
 * Longest prefix found in the cache first (SGLang's RadixAttention): requests that share a prefix run
 * while it is there. Looking all of them up pays for short queues only.
 */

import type { OrderPolicy } from '../../policy.ts'

export const longestPrefix: OrderPolicy = {
  name: 'longest-prefix',
  isFixed: false,
  maxWaiting: 128,
  usesPrefix: true,
  key: (sequence) => -sequence.foundTokens,
}
