/**
 * StepPlan: what one step computes, before it is encoded. Plans are pooled: the scheduler fills one,
 * the engine encodes and submits it, and it goes back when the step has settled, so planning
 * allocates nothing.
 */

import { createSequence, type Sequence } from './sequence.ts'

export interface StepPlan {
  /** Ascending from 0. */
  id: number
  numSeqs: number
  numTokens: number
  numRows: number
  /** [numSeqs]; entries beyond are placeholders. */
  readonly seqs: Sequence[]
  /** [numSeqs] first position each sequence computes. */
  readonly starts: Int32Array
  /** [numSeqs] tokens of each sequence. */
  readonly counts: Int32Array
  /** [numSeqs] first of the rows it sends to the logits; numRows of them follow in order. */
  readonly firstRows: Int32Array
  /** [numSeqs] rows that reach the logits. */
  readonly rowCounts: Int32Array
  /** [numSeqs] 1: it samples a token in its one row. */
  readonly samples: Uint8Array
  /** [numSeqs] 1: this is the first step that names it. */
  readonly isFirst: Uint8Array
  /** [numSeqs] set when the step settles. 1: the sampled token was appended; 0: none, or dropped. */
  readonly accepted: Uint8Array
}

const NOBODY: Sequence = createSequence({
  id: -1,
  kind: 'generate',
  prompt: [],
  maxTokens: 0,
  arrivalMs: 0,
  cacheRoot: new Int32Array(4),
  readsCache: false,
})

export function createPlan(maxSeqs: number): StepPlan {
  return {
    id: -1,
    numSeqs: 0,
    numTokens: 0,
    numRows: 0,
    seqs: new Array<Sequence>(maxSeqs).fill(NOBODY),
    starts: new Int32Array(maxSeqs),
    counts: new Int32Array(maxSeqs),
    firstRows: new Int32Array(maxSeqs),
    rowCounts: new Int32Array(maxSeqs),
    samples: new Uint8Array(maxSeqs),
    isFirst: new Uint8Array(maxSeqs),
    accepted: new Uint8Array(maxSeqs),
  }
}

/** Lets go of the sequences, so that ended ones can be collected. */
export function clearPlan(plan: StepPlan): void {
  plan.seqs.fill(NOBODY, 0, plan.numSeqs)
  plan.numSeqs = 0
  plan.numTokens = 0
  plan.numRows = 0
}
