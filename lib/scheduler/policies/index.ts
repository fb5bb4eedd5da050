/** All scheduling policies by name; `schedulerPolicy` picks one. */

import type { SchedulingPolicy } from '../policy.ts'
import { fcfs } from './fcfs.ts'

export const POLICIES: Readonly<Record<string, SchedulingPolicy>> = {
  fcfs,
}
