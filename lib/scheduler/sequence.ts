/**
 * Sequence: one run of tokens, as the scheduler sees it. One rule drives everything: a step hands out
 * tokens so that `numComputed` catches up with `numTokens`. Chunked prefill, prefix hits and
 * resumption after preemption follow from it. `numTokens` counts tokens that steps in flight
 * will sample before anybody has seen them; `numConfirmed` counts those that are known.
 */

import type { PrefixProbe } from '../kv/prefix-cache.ts'
import type { AdmissionRefusal, Reason } from './policy.ts'
import { createAccount, type ProgramAccount } from './programs.ts'

/**
 * - `generate`: samples a token wherever it catches up.
 * - `score`: log-probability of every prompt token but the first, no sampling.
 * - `forward`: logits of every prompt token, no sampling.
 */
export type SequenceKind = 'generate' | 'score' | 'forward'

/**
 * - `preempting`, `ending`: no longer planned; keeps its blocks until steps that name it settle.
 * - `preempted`: gave its blocks back, keeps its slot, waits to be computed again or swapped in.
 */
export type SequenceState =
  | 'new'
  | 'waiting'
  | 'running'
  | 'preempting'
  | 'preempted'
  | 'ending'
  | 'ended'

export interface DecisionRecord {
  reason: Reason
  firstStep: number
  lastStep: number
  count: number
}

export interface SequenceOptions {
  readonly id: number
  readonly kind: SequenceKind
  readonly prompt: readonly number[] | Int32Array
  /** Tokens to generate at most; 0 unless `generate`. */
  readonly maxTokens: number
  readonly priority?: number
  /** Scheduler.program(); default: one of its own. */
  readonly program?: ProgramAccount
  /** Time per output token it asks for, milliseconds. Default: none. */
  readonly tpotTargetMs?: number
  /** How long its blocks stay in the prefix cache after it has finished. Default 0. */
  readonly pinTtlMs?: number
  readonly arrivalMs: number
  /** Where its prefix chain starts: PrefixCache.root(). */
  readonly cacheRoot: Int32Array
  /** May begin with cached blocks. */
  readonly readsCache: boolean
  /** Carried along for the step encoder: ROW_FLAG bits of its rows. */
  readonly rowFlags?: number
  /** Length below which no stop token may come; 0: none. Also for the encoder. */
  readonly minLen?: number
  /** After each token it is held until the caller releases it. */
  readonly isConstrained?: boolean
  /** The other outputs of the same prompt, with the same cacheRoot; see forks.ts. */
  readonly group?: ForkGroup
}

/** Sequences with one prompt. */
export interface ForkGroup {
  /** How many will be added at most. */
  readonly size: number
  /** All that have been added, in order. */
  readonly members: Sequence[]
  /** Those that wait for the prompt's KV. */
  readonly waiting: Sequence[]
}

export function createForkGroup(size: number): ForkGroup {
  return { size, members: [], waiting: [] }
}

export interface Sequence {
  readonly id: number
  readonly kind: SequenceKind
  readonly priority: number
  readonly program: ProgramAccount
  readonly tpotTargetMs: number
  /** How long its blocks stay after a regular end, milliseconds. */
  pinTtlMs: number
  readonly arrivalMs: number
  /** Tokens planned for anybody when it was added. */
  arrivalTokens: number
  readonly cacheRoot: Int32Array
  readonly readsCache: boolean
  readonly rowFlags: number
  readonly minLen: number
  readonly isConstrained: boolean
  readonly group: ForkGroup | undefined
  readonly promptLen: number
  /** Prompt and output at most. */
  readonly maxLen: number
  /** Data-parallel group whose ranks compute it; see groups.ts. */
  attentionGroup: number
  state: SequenceState
  /** [capacity ≥ numConfirmed] */
  tokens: Int32Array
  numConfirmed: number
  numTokens: number
  /** Tokens whose KV the planned steps write, or found written. */
  numComputed: number
  /** Tokens whose KV settled steps have written. */
  numSettled: number
  /** Prompt tokens found in the prefix cache, or taken from another fork, when first admitted. */
  numCachedTokens: number
  /** [ceil(maxLen / blockSize)] once running. */
  blocks: Int32Array
  numBlocks: number
  /** Blocks at the front that came from the prefix cache or another fork. */
  numHitBlocks: number
  /** Blocks at the front that the prefix cache knows. */
  numEntered: number
  /** Hash chain after `numEntered` blocks. */
  readonly cacheChain: Int32Array
  /** Its next token must not be sampled yet: what may come is not known. */
  isHeld: boolean
  /** Sampling slot on the device; -1: none. */
  slot: number
  /** Host blocks that hold its first `hostTokens` tokens while it is swapped out; else -1, 0, 0. */
  hostStart: number
  hostCount: number
  hostTokens: number
  /** Steps in flight that name it. */
  inFlight: number
  /** Tokens granted in the step being planned. */
  chunk: number
  firstPlannedMs: number
  numPreemptions: number
  /** Why too few blocks kept it waiting, when, and how many were available then. */
  refusal: AdmissionRefusal | undefined
  refusedStep: number
  refusedAvailable: number
  readonly decisions: DecisionRecord[]
  /** Its place in the waiting queue, its key where the order's are fixed, and its place in the heap. */
  waitIndex: number
  orderKey: number
  heapIndex: number
  /** What the prefix cache knew of it when last looked up; see SequenceView.foundTokens. */
  readonly probe: PrefixProbe
  foundTokens: number
}

const NO_BLOCKS = new Int32Array(0)
const MAX_DECISIONS = 32

export function createSequence(options: SequenceOptions): Sequence {
  const promptLen = options.prompt.length
  return {
    id: options.id,
    kind: options.kind,
    priority: options.priority ?? 0,
    program: options.program ?? createAccount(),
    tpotTargetMs: options.tpotTargetMs ?? Number.POSITIVE_INFINITY,
    pinTtlMs: options.pinTtlMs ?? 0,
    arrivalMs: options.arrivalMs,
    arrivalTokens: 0,
    cacheRoot: options.cacheRoot,
    readsCache: options.readsCache,
    rowFlags: options.rowFlags ?? 0,
    minLen: options.minLen ?? 0,
    isConstrained: options.isConstrained ?? false,
    group: options.group,
    promptLen,
    maxLen: promptLen + options.maxTokens,
    attentionGroup: 0,
    state: 'new',
    tokens: Int32Array.from(options.prompt),
    numConfirmed: promptLen,
    numTokens: promptLen,
    numComputed: 0,
    numSettled: 0,
    numCachedTokens: 0,
    blocks: NO_BLOCKS,
    numBlocks: 0,
    numHitBlocks: 0,
    numEntered: 0,
    cacheChain: Int32Array.from(options.cacheRoot),
    isHeld: false,
    slot: -1,
    hostStart: -1,
    hostCount: 0,
    hostTokens: 0,
    inFlight: 0,
    chunk: 0,
    firstPlannedMs: -1,
    numPreemptions: 0,
    refusal: undefined,
    refusedStep: -1,
    refusedAvailable: 0,
    decisions: [],
    waitIndex: -1,
    orderKey: 0,
    heapIndex: -1,
    probe: { root: options.cacheRoot, hashes: NO_BLOCKS, numHashed: 0, numFound: 0 },
    foundTokens: 0,
  }
}

/**
 * Tokens whose KV must exist before nothing is left to plan: the last token of an output is never
 * computed, nor is the last of a score, nor, for now, the last of a held sequence.
 */
export function computeTarget(sequence: Sequence): number {
  switch (sequence.kind) {
    case 'generate':
      return sequence.isHeld || sequence.numTokens === sequence.maxLen
        ? sequence.numTokens - 1
        : sequence.numTokens
    case 'score':
      return sequence.promptLen - 1
    case 'forward':
      return sequence.promptLen
  }
}

/** KV positions the sequence needs if it runs to its end. */
export function finalTarget(sequence: Sequence): number {
  return sequence.kind === 'forward' ? sequence.maxLen : sequence.maxLen - 1
}

/** It has ended, though a step in flight may name it. */
export function isLeaving({ state }: Sequence): boolean {
  return state === 'ending' || state === 'ended'
}

/** A running member of its group whose steps so far write the KV of the whole prompt. */
export function donorOf({ group, promptLen }: Sequence): Sequence | undefined {
  return group?.members.find(
    (member) => member.state === 'running' && member.numComputed >= promptLen,
  )
}

export function confirmToken(sequence: Sequence, token: number): void {
  if (sequence.numConfirmed === sequence.tokens.length) {
    const capacity = Math.min(sequence.maxLen, Math.max(64, 2 * sequence.tokens.length))
    const grown = new Int32Array(capacity)
    grown.set(sequence.tokens)
    sequence.tokens = grown
  }
  sequence.tokens[sequence.numConfirmed++] = token
}

/** Appends to what `explain` tells; the same decision again only counts. */
export function recordDecision(sequence: Sequence, reason: Reason, step: number): void {
  const decisions = sequence.decisions
  const last = decisions.length > 0 ? decisions[decisions.length - 1] : undefined
  if (last !== undefined && last.reason === reason) {
    last.lastStep = step
    last.count++
    return
  }
  if (decisions.length === MAX_DECISIONS) decisions.shift()
  decisions.push({ reason, firstStep: step, lastStep: step, count: 1 })
}
