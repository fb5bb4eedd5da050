/**
 * Program-level least attained service (Autellix): the requests of the program that has been given
 * the fewest tokens go first, so that one agent with hundreds of calls does not hold up the others.
 */

import type { OrderPolicy } from '../../policy.ts'

export const leastAttained: OrderPolicy = {
  name: 'least-attained',
  isFixed: false,
  key: (sequence) => sequence.program.attainedTokens,
}
