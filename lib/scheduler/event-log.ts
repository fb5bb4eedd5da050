/**
 * Event log: everything that decides what a scheduler plans, one JSON value a line: the sizes and
 * policies it works with, then every call in order. Replaying it (replay.ts) gives the same plans,
 * compared by hash. A log holds the token ids of all prompts and outputs: treat it as you treat them.
 */

import type { SchedulerConfig } from './config.ts'
import type { SchedulerObserver } from './observer.ts'
import type { StepPlan } from './plan.ts'
import type { EndReason } from './policy.ts'
import type { Sequence, SequenceKind } from './sequence.ts'

/** Raised with every change of what is recorded or of what a plan's hash covers. 2: forks, pins, cuts. */
export const EVENT_LOG_VERSION = 2

/** What is left of a SchedulerConfig on paper; costs and observers are functions. */
export interface LoggedConfig
  extends Omit<SchedulerConfig, 'policy' | 'cacheKey' | 'costs' | 'observer'> {
  readonly cacheKey: readonly number[]
  readonly policy: {
    readonly order: string
    readonly budget: string
    readonly admission: string
    readonly victim: string
  }
}

export type SchedulerEvent =
  | { readonly type: 'config'; readonly version: number; readonly config: LoggedConfig }
  | {
      readonly type: 'add'
      readonly id: number
      readonly kind: SequenceKind
      readonly prompt: readonly number[]
      readonly maxTokens: number
      readonly priority: number
      /** Number of its program in order of first appearance. */
      readonly program: number
      /** Null: no target. */
      readonly tpotTargetMs: number | null
      readonly pinTtlMs: number
      readonly arrivalMs: number
      readonly cacheRoot: readonly number[]
      readonly readsCache: boolean
      readonly isConstrained: boolean
      /** Id of the first sequence of its fork group, its own included. */
      readonly forkOf?: number
    }
  | { readonly type: 'resume'; readonly id: number }
  | { readonly type: 'pin'; readonly id: number; readonly ttlMs: number }
  | { readonly type: 'end'; readonly id: number; readonly reason: EndReason }
  /** `hash`: of what was planned; null: nothing. */
  | { readonly type: 'plan'; readonly nowMs: number; readonly hash: string | null }
  /** The oldest step in flight has run. */
  | { readonly type: 'settle'; readonly sampled: readonly number[]; readonly runMs: number }
  /** The last line of a log that ends before its scheduler did. */
  | { readonly type: 'cut'; readonly reason: string }

/** Hash of int32 words, the same for the same words. */
export type PlanHash = (words: Int32Array) => string

export function logConfig(config: SchedulerConfig): SchedulerEvent {
  const { policy, cacheKey, costs: _, observer: __, ...sizes } = config
  return {
    type: 'config',
    version: EVENT_LOG_VERSION,
    config: {
      ...sizes,
      cacheKey: Array.from(cacheKey),
      policy: {
        order: policy.order.name,
        budget: policy.budget.name,
        admission: policy.admission.name,
        victim: policy.victim.name,
      },
    },
  }
}

/** An observer that turns what a scheduler sees into events. Log `logConfig` first. */
export function createEventRecorder(
  hash: PlanHash,
  write: (event: SchedulerEvent) => void,
): SchedulerObserver {
  // Weak: a program that is forgotten by the scheduler never comes back as the same object.
  const programs = new WeakMap<object, number>()
  let numPrograms = 0
  const hashPlan = createPlanHasher(hash)
  return {
    added(sequence) {
      let program = programs.get(sequence.program)
      if (program === undefined) {
        program = numPrograms++
        programs.set(sequence.program, program)
      }
      const { tpotTargetMs } = sequence
      write({
        type: 'add',
        id: sequence.id,
        kind: sequence.kind,
        prompt: Array.from(sequence.tokens.subarray(0, sequence.promptLen)),
        maxTokens: sequence.maxLen - sequence.promptLen,
        priority: sequence.priority,
        program,
        tpotTargetMs: Number.isFinite(tpotTargetMs) ? tpotTargetMs : null,
        pinTtlMs: sequence.pinTtlMs,
        arrivalMs: sequence.arrivalMs,
        cacheRoot: Array.from(sequence.cacheRoot),
        readsCache: sequence.readsCache,
        isConstrained: sequence.isConstrained,
        ...(sequence.group !== undefined && { forkOf: sequence.group.members[0].id }),
      })
    },
    resumed: (sequence) => write({ type: 'resume', id: sequence.id }),
    pinned: (sequence) => write({ type: 'pin', id: sequence.id, ttlMs: sequence.pinTtlMs }),
    ended: (sequence, reason) => write({ type: 'end', id: sequence.id, reason }),
    planned: (nowMs, plan) =>
      write({ type: 'plan', nowMs, hash: plan === undefined ? null : hashPlan(plan) }),
    settling: (plan, sampled, runMs) =>
      write({
        type: 'settle',
        sampled: Array.from(sampled.subarray(0, plan.numRows)),
        runMs,
      }),
  }
}

/** Hashes plans: which tokens of which sequences in which blocks, and which blocks are copied. */
export function createPlanHasher(hash: PlanHash): (plan: StepPlan) => string {
  let words = new Int32Array(1024)
  let length = 0
  const push = (word: number) => {
    if (length === words.length) {
      const grown = new Int32Array(2 * words.length)
      grown.set(words)
      words = grown
    }
    words[length++] = word
  }
  return (plan) => {
    length = 0
    push(plan.id)
    push(plan.numSeqs)
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      push(sequence.id)
      push(sequence.slot)
      push(plan.starts[i])
      push(plan.counts[i])
      push(plan.rowCounts[i])
      pushBlocks(push, sequence, plan.counts[i])
    }
    for (const runs of [plan.swapOuts, plan.swapIns]) {
      push(runs.length)
      for (let i = 0; i < runs.length; i++) push(runs.word(i))
    }
    push(plan.numCopies)
    for (let i = 0; i < 2 * plan.numCopies; i++) push(plan.copies[i])
    return hash(words.subarray(0, length))
  }
}

/** A step of one token changes the last block at most; others may have taken any number. */
function pushBlocks(push: (word: number) => void, sequence: Sequence, count: number): void {
  push(sequence.numBlocks)
  const first = count === 1 ? Math.max(0, sequence.numBlocks - 1) : 0
  for (let i = first; i < sequence.numBlocks; i++) push(sequence.blocks[i])
}
