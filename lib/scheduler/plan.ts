/**
 * StepPlan: what one step computes, before it is encoded. Plans are pooled: the scheduler fills one,
 * the engine encodes and submits it, and it goes back when the step has settled, so planning
 * allocates nothing.
 */

import { BlockRuns } from '../kv/block-runs.ts'
import { createSequence, recordDecision, type Sequence } from './sequence.ts'

export interface StepPlan {
  /** Ascending from 0. */
  id: number
  numSeqs: number
  numTokens: number
  numRows: number
  /** Positions that its tokens attend to, added up. */
  context: number
  /** KV blocks to copy before anything else: first those to the host, then those back. */
  readonly swapOuts: BlockRuns
  readonly swapIns: BlockRuns
  /** [numCopies · 2] {source, destination} blocks: copies on the device, behind the swaps. */
  readonly copies: Int32Array
  numCopies: number
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
    context: 0,
    swapOuts: new BlockRuns(),
    swapIns: new BlockRuns(),
    copies: new Int32Array(2 * maxSeqs),
    numCopies: 0,
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

/** Plans the next `count` tokens of a sequence: it counts as computed from here on. */
export function appendToPlan(
  plan: StepPlan,
  sequence: Sequence,
  count: number,
  nowMs: number,
): void {
  const i = plan.numSeqs++
  const end = sequence.numComputed + count
  const samples = sequence.kind === 'generate' && end === sequence.numTokens
  const rows = sequence.kind === 'generate' ? (samples ? 1 : 0) : count
  recordDecision(sequence, count === 1 && sequence.numComputed > 0 ? 'decode' : 'prefill', plan.id)
  plan.seqs[i] = sequence
  plan.starts[i] = sequence.numComputed
  plan.counts[i] = count
  plan.firstRows[i] = plan.numRows
  plan.rowCounts[i] = rows
  plan.samples[i] = samples ? 1 : 0
  plan.isFirst[i] = sequence.firstPlannedMs < 0 ? 1 : 0
  if (sequence.firstPlannedMs < 0) sequence.firstPlannedMs = nowMs
  plan.numRows += rows
  plan.numTokens += count
  plan.context += count * sequence.numComputed + (count * (count + 1)) / 2
  sequence.program.attainedTokens += count
  sequence.numComputed = end
  if (samples) sequence.numTokens++
  if (samples && sequence.isConstrained) sequence.isHeld = true
  sequence.inFlight++
}

/** At most one for each sequence that the plan names. */
export function addBlockCopy(plan: StepPlan, source: number, destination: number): void {
  plan.copies[2 * plan.numCopies] = source
  plan.copies[2 * plan.numCopies + 1] = destination
  plan.numCopies++
}

/** Lets go of the sequences, so that ended ones can be collected. */
export function clearPlan(plan: StepPlan): void {
  plan.seqs.fill(NOBODY, 0, plan.numSeqs)
  plan.numSeqs = 0
  plan.numTokens = 0
  plan.numRows = 0
  plan.context = 0
  plan.swapOuts.clear()
  plan.swapIns.clear()
  plan.numCopies = 0
}
