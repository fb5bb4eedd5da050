/**
 * SchedulingPolicy: the choices a scheduler leaves open, as pure functions over read-only views. A
 * policy is a file in policies/ and a line in policies/index.ts. The scheduler keeps the rules
 * that no policy may break: token, row and block budgets, decode first, preempted sequences before
 * new ones.
 */

/** Why something was, or was not, done to a sequence; `explain` returns them. */
export type Reason =
  | 'queued'
  | 'admitted'
  | 'resumed' // admitted again after preemption
  | 'prefix_hit' // began with cached blocks
  | 'prefill' // computed a chunk of its prompt
  | 'decode'
  | 'deferred_budget' // in the running set, but the step had no tokens or rows left
  | 'stalled_blocks' // needed a block and none was free
  | 'preempted'
  | AdmissionRefusal
  | 'finished'
  | 'cancelled'

export type AdmissionRefusal =
  | 'wait_max_seqs' // as many sequences run as may
  | 'wait_prefill_backlog' // enough prompts are partly computed
  | 'wait_budget' // the step has no tokens left
  | 'wait_slot' // no sampling slot is free
  | 'wait_blocks' // its prompt does not fit beside the reserve
  | 'wait_projected_peak' // it fits now, but what runs is expected to need the blocks

/** What a policy may know of a sequence. */
export interface SequenceView {
  /** Ascending in order of arrival. */
  readonly id: number
  readonly priority: number
  readonly arrivalMs: number
  readonly promptLen: number
  readonly maxLen: number
  readonly numTokens: number
  readonly numComputed: number
  readonly numBlocks: number
}

export interface StepLoad {
  readonly maxNumBatchedTokens: number
  /** Sequences that need exactly one token. */
  readonly numDecodes: number
}

export interface AdmissionView {
  /** Blocks the candidate takes from those available. */
  readonly neededBlocks: number
  readonly availableBlocks: number
  readonly totalBlocks: number
  /** Blocks in use at the worst moment to come, candidate included, as outputs are expected to grow. */
  readonly projectedPeakBlocks: number
  /** Nothing else holds blocks. */
  readonly alone: boolean
}

export interface SchedulingPolicy {
  readonly name: string
  /** Index of the waiting sequence to consider next. `waiting` is in order of arrival, never empty. */
  next(waiting: readonly SequenceView[], nowMs: number): number
  /** Tokens of the next step; the scheduler caps it at maxNumBatchedTokens. Decodes always run. */
  tokenBudget(load: StepLoad): number
  /** `admit`, or why not. Must admit a candidate that is alone and fits. */
  admission(view: AdmissionView): 'admit' | AdmissionRefusal
  /** Index of the running sequence to preempt. `candidates` is in order of admission, never empty. */
  victim(candidates: readonly SequenceView[]): number
}
