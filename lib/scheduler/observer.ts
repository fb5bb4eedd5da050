/** SchedulerObserver: told of every call that changes what a scheduler will plan; see event-log.ts. */

import type { StepPlan } from './plan.ts'
import type { EndReason } from './policy.ts'
import type { Sequence } from './sequence.ts'

export interface SchedulerObserver {
  added(sequence: Sequence): void
  /** It was held, and has not ended. */
  resumed(sequence: Sequence): void
  /** Its pinTtlMs changed; it has not ended. */
  pinned(sequence: Sequence): void
  /** It had not ended before. */
  ended(sequence: Sequence, reason: EndReason): void
  /** `plan`: what was planned; its sequences are as the step finds them. */
  planned(nowMs: number, plan: StepPlan | undefined): void
  /** Called first: nothing has been settled yet. */
  settling(plan: StepPlan, sampled: Int32Array, runMs: number): void
}
