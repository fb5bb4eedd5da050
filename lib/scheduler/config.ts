/**
 * SchedulerConfig: the sizes a scheduler works with, and what they rule out from the start;
 * SchedulerStats: what it counts.
 */

import { EngineError } from '../errors.ts'
import type { CostPrior, StepCosts } from './costs.ts'
import type { SchedulerObserver } from './observer.ts'
import type { SchedulingPolicy } from './policy.ts'
import { finalTarget, type Sequence } from './sequence.ts'

export interface SchedulerConfig {
  readonly maxNumSeqs: number
  /** At least maxNumSeqs, so that decodes always fit. */
  readonly maxNumBatchedTokens: number
  /** Rows that reach the logits in a step; at least maxNumSeqs. */
  readonly maxRows: number
  readonly maxModelLen: number
  readonly numBlocks: number
  readonly blockSize: number
  /** Sampling slots; at least 2 · maxNumSeqs, so that ended sequences do not hold up new ones. */
  readonly numSlots: number
  readonly maxWaiting: number
  readonly prefixCache: boolean
  readonly policy: SchedulingPolicy
  /** 4 random words: the key of the prefix hash. */
  readonly cacheKey: Int32Array
  /** Smallest chunk a prompt is cut into while others wait, tokens. Default 256. */
  readonly minChunk?: number
  /** Prompts that may be partly computed at once. Default 4. */
  readonly maxPartialPrefills?: number
  /** Time after which a waiting sequence goes first, whatever the policy's order. Default 30,000. */
  readonly starvationMs?: number
  /** KV blocks on the host for sequences that are swapped out. Default 0. */
  readonly numHostBlocks?: number
  /** What steps are believed to cost before any has run; `settle` corrects it. */
  readonly costPrior?: CostPrior
  /** Instead of what is learnt from the prior. */
  readonly costs?: StepCosts
  /** Time per output token of sequences that ask for none. Default: no target. */
  readonly tpotTargetMs?: number
  readonly observer?: SchedulerObserver
}

export interface SchedulerStats {
  readonly running: number
  readonly waiting: number
  readonly preemptions: number
  /** Of the preemptions, and resumed from the host. */
  readonly swapsOut: number
  readonly swapsIn: number
  readonly hostBlocksUsed: number
  /** Blocks held for conversations that are expected to go on. */
  readonly pinnedBlocks: number
  readonly droppedTokens: number
  /** Prompt tokens looked up in, and found in, the prefix cache. */
  readonly prefixQueries: number
  readonly prefixHits: number
}

/** ERR_USAGE when not every running sequence could get its token in one step. */
export function checkSchedulerConfig(config: SchedulerConfig): void {
  const { maxNumSeqs, maxNumBatchedTokens, maxRows } = config
  if (maxNumBatchedTokens < maxNumSeqs || maxRows < maxNumSeqs)
    throw new EngineError(
      'ERR_USAGE',
      `maxNumSeqs ${maxNumSeqs} exceeds the tokens (${maxNumBatchedTokens}) or rows (${maxRows}) of a step; lower it`,
    )
}

/** ERR_CONTEXT_LENGTH or ERR_KV_EXHAUSTED when the sequence could not run even alone. */
export function requireFits(sequence: Sequence, config: SchedulerConfig): void {
  const { maxModelLen, numBlocks, blockSize } = config
  if (sequence.maxLen > maxModelLen) {
    const generated = sequence.maxLen - sequence.promptLen
    throw new EngineError(
      'ERR_CONTEXT_LENGTH',
      sequence.promptLen >= maxModelLen
        ? `${sequence.promptLen} prompt tokens exceed the context of ${maxModelLen}; shorten the prompt`
        : `${sequence.promptLen} prompt tokens and up to ${generated} generated ones exceed the context of ${maxModelLen}; shorten the prompt or lower maxTokens`,
    )
  }
  const needed = Math.ceil(finalTarget(sequence) / blockSize)
  if (needed > numBlocks)
    throw new EngineError(
      'ERR_KV_EXHAUSTED',
      `${sequence.maxLen} tokens need ${needed} KV blocks and there are ${numBlocks}; lower maxTokens or raise kvCacheBytes`,
    )
}
