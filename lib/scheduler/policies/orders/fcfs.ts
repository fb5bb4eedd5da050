/** First come, first served. */

import type { OrderPolicy } from '../../policy.ts'

export const fcfs: OrderPolicy = {
  name: 'fcfs',
  isFixed: true,
  key: (sequence) => sequence.id,
}
