/**
 * What the last steps did and how long it took, for those who watch: the page, the metrics. Kept in a
 * ring that is written over, so that watching costs a running engine nothing.
 */

import type { CollectivePayload } from '../program/collectives.ts'
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
  begin(plan: StepPlan, layout: PartLayout, planMs: number, nowMs: number): void {
    const entry = this.#entry(plan)
    entry.id = plan.id
    entry.planMs = planMs
    entry.submittedMs = nowMs
    entry.sequences = plan.numSeqs
    entry.decodeTokens = countDecodes(plan)
    entry.prefillTokens = plan.numTokens - entry.decodeTokens
    entry.nanoBatches = splitTokens(layout, plan.numTokens)
    entry.hasEnded = false
  }

  end(plan: StepPlan, result: StepResult, nowMs: number): void {
    const entry = this.#entry(plan)
    entry.endedMs = nowMs
    entry.queueMs = result.queueUs / 1000
    entry.runMs = result.runUs / 1000
    entry.hasEnded = true
    this.#runMs += entry.runMs
    this.#queueMs += entry.queueMs
    this.#collectiveBytes +=
      plan.numTokens * this.#payload.bytesPerToken + plan.numRows * this.#payload.bytesPerRow
  }

  /** Steps that have ended, oldest first. */
  recent(): StepRecord[] {
    return this.#entries
      .filter(({ hasEnded }) => hasEnded)
      .sort((a, b) => a.id - b.id)
      .map(({ hasEnded: _, ...record }) => record)
  }

  #entry(plan: StepPlan): Entry {
    return this.#entries[plan.id % NUM_KEPT]
  }
}

function splitTokens({ parts, bound }: PartLayout, numTokens: number): readonly number[] {
  return Array.from(
    { length: parts },
    (_, part) => bound(numTokens, part + 1) - bound(numTokens, part),
  )
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
