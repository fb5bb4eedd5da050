/**
 * SchedulingPolicy: the choices a scheduler leaves open, as pure functions over read-only views. Each
 * choice is a file in policies/ and a line in policies/index.ts. The scheduler keeps the rules that no
 * policy may break: token, row and block budgets, decode first, preempted sequences before new ones,
 * and no request overtaken once it has waited `starvationMs`.
 */

import type { StepCosts } from './costs.ts'

/** Why something was, or was not, done to a sequence; `explain` returns them. */
export type Reason =
  | 'queued'
  | 'admitted'
  | 'admitted_overdue' // first in line because it had waited too long, whatever the order says
  | 'resumed' // admitted again after preemption
  | 'swapped_in' // resumed with blocks copied back from the host
  | 'prefix_hit' // began with cached blocks
  | 'wait_fork' // its prompt is computed for another output, whose blocks it will share
  | 'forked' // began with the blocks of another output of its prompt
  | 'prefill' // computed a chunk of its prompt
  | 'decode'
  | 'deferred_budget' // in the running set, but the step had no tokens or rows left
  | 'stalled_blocks' // needed a block and none was free
  | 'preempted' // gave its blocks up; they will be computed again
  | 'swapped_out' // gave its blocks up; their content waits on the host
  | 'pinned' // its blocks stay in the prefix cache for a while after its end
  | AdmissionRefusal
  | EndReason

/** Why a sequence ended. */
export type EndReason = 'finished' | 'cancelled' | 'deadline'

export type AdmissionRefusal =
  | 'wait_max_seqs' // as many sequences run as may
  | 'wait_prefill_backlog' // enough prompts are partly computed
  | 'wait_budget' // the step has no tokens left
  | 'wait_slot' // no sampling slot is free
  | 'wait_held' // swapped out, and what its next token may be is not known yet
  | 'wait_blocks' // its prompt does not fit beside the reserve
  | 'wait_projected_peak' // it fits now, but what runs is expected to need the blocks

/** What a policy may know of a sequence. */
export interface SequenceView {
  /** Ascending in order of arrival. */
  readonly id: number
  /** Higher is more urgent. */
  readonly priority: number
  readonly arrivalMs: number
  /** Tokens the scheduler had planned for anybody when it arrived: a clock that counts work. */
  readonly arrivalTokens: number
  readonly promptLen: number
  readonly maxLen: number
  readonly numTokens: number
  readonly numComputed: number
  readonly numBlocks: number
  /** Whose requests it belongs to. */
  readonly program: ProgramView
  /** Tokens at its beginning that the prefix cache knew when last looked up; orders with `usesPrefix`. */
  readonly foundTokens: number
}

/** Requests that belong together, such as the calls of one agent. */
export interface ProgramView {
  /** Tokens planned for its requests so far. */
  readonly attainedTokens: number
}

/** What an order may know beside the sequence. */
export interface OrderState {
  readonly nowMs: number
  /** Tokens planned so far, all sequences together. */
  readonly plannedTokens: number
  /** Expected length of an output, tokens. */
  readonly expectedOutput: number
}

/** Which waiting sequence is considered next. */
export interface OrderPolicy {
  readonly name: string
  /** Its key is computed once, when the sequence begins to wait; else in every step that admits. */
  readonly isFixed: boolean
  /** With more waiting sequences than this: order of arrival. Default: no limit. */
  readonly maxWaiting?: number
  /** Reads `foundTokens`. */
  readonly usesPrefix?: boolean
  /** Smallest first; equal ones in order of arrival. */
  key(sequence: SequenceView, state: OrderState): number
}

/** What the step to be planned has to do. */
export interface StepLoad {
  readonly maxNumBatchedTokens: number
  /** Sequences that compute exactly one token. */
  readonly numDecodes: number
  /** Their context lengths added up. */
  readonly decodeContext: number
  /** Prompt tokens to compute: of prompts begun, and of those that wait. */
  readonly pendingTokens: number
  /** Position at which the oldest prompt begun goes on. */
  readonly prefillStart: number
  /** Smallest time per output token asked for by a sequence that decodes; Infinity: none. */
  readonly tpotTargetMs: number
  readonly costs: StepCosts
}

/** How many tokens the next step computes. */
export interface BudgetPolicy {
  readonly name: string
  /** Decodes included, and they always run; capped at maxNumBatchedTokens. */
  tokens(load: StepLoad): number
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

/** Whether a candidate whose turn it is may start. */
export interface AdmissionPolicy {
  readonly name: string
  /** `admit`, or why not. Must admit a candidate that is alone and fits. */
  decide(view: AdmissionView): 'admit' | AdmissionRefusal
}

/** What either way of preempting would cost. */
export interface PreemptionView {
  /** Computing again what its blocks hold. */
  readonly recomputeMs: number
  /** Copying its blocks to the host and back. */
  readonly copyMs: number
}

/** Who gives up its blocks when they run out, and how. */
export interface VictimPolicy {
  readonly name: string
  /** Index of the running sequence to preempt. `candidates` is in order of admission, never empty. */
  pick(candidates: readonly SequenceView[]): number
  /** Asked where the host has room for its blocks. */
  form(view: PreemptionView): 'recompute' | 'swap'
}

export interface SchedulingPolicy {
  readonly order: OrderPolicy
  readonly budget: BudgetPolicy
  readonly admission: AdmissionPolicy
  readonly victim: VictimPolicy
}
