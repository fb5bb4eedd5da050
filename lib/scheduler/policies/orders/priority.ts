/**
 * Highest priority first, with ageing: a second of waiting is worth a tenth of a priority. The age of
 * all waiting sequences grows alike, so comparing them needs no clock and the key stays as it is.
 */

import type { OrderPolicy } from '../../policy.ts'

const MS_PER_PRIORITY = 10_000

export const priority: OrderPolicy = {
  name: 'priority',
  isFixed: true,
  key: (sequence) => sequence.arrivalMs / MS_PER_PRIORITY - sequence.priority,
}
