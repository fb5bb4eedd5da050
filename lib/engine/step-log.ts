/**
 * What the last steps did and how long it took, for those who watch: the page, the metrics. Kept in a
 * ring that is written over, so that watching costs a running engine nothing.
 */

import type { CollectivePayload } from '../program/collectives.ts'
import type { GroupedStep } from '../scheduler/groups.ts'
import type { StepPlan } from '../scheduler/plan.ts'
import type { StepResult } from './step.ts'
import type { PartLayout } from './step-programs.ts'
import type { StepRecord } from './types.ts'

const NUM_KEPT = 128

type Entry = { -readonly [Field in keyof StepRecord]: StepRecord[Field] } & { hasEnded: boolean }

export class StepLog {
  readonly #payload: CollectivePayload
  /** By step id, modulo their number. */
  readonly #entries: Entry[]
  #runMs = 0
  #queueMs = 0
  #collectiveBytes = 0

  constructor(payload: CollectivePayload) {
    this.#payload = payload
    this.#entries = Array.from({ length: NUM_KEPT }, createEntry)
  }

  /** Of all steps that have ended: running, and behind the step before. */
  get runMs(): number {
    return this.#runMs
  }
  get queueMs(): number {
    return this.#queueMs
  }
  get collectiveBytes(): number {
    return this.#collectiveBytes
  }

  /** A step goes to the ranks. `planMs`: time it took to plan and encode it. */
  begin(step: GroupedStep, layout: PartLayout, planMs: number, nowMs: number): void {
    const entry = this.#entry(step)
    entry.id = step.id
    entry.planMs = planMs
    entry.submittedMs = nowMs
    entry.sequences = sumOver(step, ({ numSeqs }) => numSeqs)
    entry.decodeTokens = sumOver(step, countDecodes)
    entry.prefillTokens = sumOver(step, ({ numTokens }) => numTokens) - entry.decodeTokens
    entry.nanoBatches = splitTokens(layout, step)
    entry.hasEnded = false
  }

  end(step: GroupedStep, times: Pick<StepResult, 'queueUs' | 'runUs'>, nowMs: number): void {
    const entry = this.#entry(step)
    entry.endedMs = nowMs
    entry.queueMs = times.queueUs / 1000
    entry.runMs = times.runUs / 1000
    entry.hasEnded = true
    this.#runMs += entry.runMs
    this.#queueMs += entry.queueMs
    this.#collectiveBytes +=
      step.maxTokens * this.#payload.bytesPerToken +
      Math.max(...step.plans.map((plan) => plan?.numRows ?? 0)) * this.#payload.bytesPerRow
  }

  /** Steps that have ended, oldest first. */
  recent(): StepRecord[] {
    return this.#entries
      .filter(({ hasEnded }) => hasEnded)
      .sort((a, b) => a.id - b.id)
      .map(({ hasEnded: _, ...record }) => record)
  }

  #entry({ id }: GroupedStep): Entry {
    return this.#entries[id % NUM_KEPT]
  }
}

/** Of all groups together. */
function splitTokens({ parts, bound }: PartLayout, step: GroupedStep): readonly number[] {
  return Array.from({ length: parts }, (_, part) =>
    sumOver(step, ({ numTokens }) => bound(numTokens, part + 1) - bound(numTokens, part)),
  )
}

function sumOver({ plans }: GroupedStep, count: (plan: StepPlan) => number): number {
  return plans.reduce((sum, plan) => sum + (plan === undefined ? 0 : count(plan)), 0)
}

function createEntry(): Entry {
  return {
    id: -1,
    planMs: 0,
    submittedMs: 0,
    endedMs: 0,
    queueMs: 0,
    runMs: 0,
    sequences: 0,
    decodeTokens: 0,
    prefillTokens: 0,
    nanoBatches: [],
    hasEnded: false,
  }
}

function countDecodes(plan: StepPlan): number {
  let count = 0
  for (let i = 0; i < plan.numSeqs; i++)
    if (plan.counts[i] === 1 && plan.starts[i] >= plan.seqs[i].promptLen) count++
  return count
}
