/** All scheduling policies by name; createPolicy puts one of each kind together. */

import { EngineError } from '../../errors.ts'
import type {
  AdmissionPolicy,
  BudgetPolicy,
  OrderPolicy,
  SchedulingPolicy,
  VictimPolicy,
} from '../policy.ts'
import { projectedPeak } from './admissions/projected-peak.ts'
import { promptFits } from './admissions/prompt-fits.ts'
import { dense } from './budgets/dense.ts'
import { fixed } from './budgets/fixed.ts'
import { milliseconds } from './budgets/milliseconds.ts'
import { fcfs } from './orders/fcfs.ts'
import { highestResponseRatio } from './orders/highest-response-ratio.ts'
import { leastAttained } from './orders/least-attained.ts'
import { longestPrefix } from './orders/longest-prefix.ts'
import { priority } from './orders/priority.ts'
import { shortestRemaining } from './orders/shortest-remaining.ts'
import { cheapest, recompute, swap } from './victims/newest.ts'

export const ORDERS: readonly OrderPolicy[] = [
  fcfs,
  priority,
  shortestRemaining,
  highestResponseRatio,
  longestPrefix,
  leastAttained,
]
export const BUDGETS: readonly BudgetPolicy[] = [fixed, dense, milliseconds]
export const ADMISSIONS: readonly AdmissionPolicy[] = [projectedPeak, promptFits]
/** Named after how the victim, always the newest of the lowest priority, gives up its blocks. */
export const VICTIMS: readonly VictimPolicy[] = [cheapest, recompute, swap]

export interface PolicyNames {
  readonly order?: string | undefined
  readonly budget?: string | undefined
  readonly admission?: string | undefined
  readonly victim?: string | undefined
}

/** The first of each kind where no name is given. ERR_USAGE for a name that is not known. */
export function createPolicy(names: PolicyNames = {}): SchedulingPolicy {
  return {
    order: find(ORDERS, names.order, 'scheduling order'),
    budget: find(BUDGETS, names.budget, 'step budget'),
    admission: find(ADMISSIONS, names.admission, 'admission rule'),
    victim: find(VICTIMS, names.victim, 'way to preempt'),
  }
}

function find<T extends { readonly name: string }>(
  policies: readonly T[],
  name: string | undefined,
  what: string,
): T {
  if (name === undefined) return policies[0]
  const found = policies.find((policy) => policy.name === name)
  if (found !== undefined) return found
  const known = policies.map((policy) => policy.name).join(', ')
  throw new EngineError('ERR_USAGE', `there is no ${what} ${name}; known: ${known}`)
}
