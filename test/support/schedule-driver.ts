/** A scheduler with a small pool, and an executor for its plans. */

import { expect } from 'vitest'
import type { SchedulerConfig } from '../../lib/scheduler/config.ts'
import type { StepPlan } from '../../lib/scheduler/plan.ts'
import { createPolicy } from '../../lib/scheduler/policies/index.ts'
import type { SchedulingPolicy } from '../../lib/scheduler/policy.ts'
import { Scheduler } from '../../lib/scheduler/scheduler.ts'
import {
  createSequence,
  type ForkGroup,
  type Sequence,
  type SequenceKind,
} from '../../lib/scheduler/sequence.ts'

export const BLOCK = 4

/** Admits whatever fits at the moment, so that blocks do run out. */
export const eager: SchedulingPolicy = {
  ...createPolicy(),
  admission: {
    name: 'eager',
    decide: (view) => (view.neededBlocks <= view.availableBlocks ? 'admit' : 'wait_blocks'),
  },
}

function config(overrides: Partial<SchedulerConfig> = {}): SchedulerConfig {
  return {
    maxNumSeqs: 8,
    maxNumBatchedTokens: 32,
    maxRows: 16,
    maxModelLen: 256,
    numBlocks: 64,
    blockSize: BLOCK,
    numSlots: 16,
    maxWaiting: 64,
    prefixCache: true,
    policy: createPolicy(),
    cacheKey: Int32Array.of(1, 2, 3, 4),
    minChunk: 8,
    ...overrides,
  }
}

export interface AddOptions {
  readonly kind?: SequenceKind
  readonly priority?: number
  readonly readsCache?: boolean
  readonly program?: string
  readonly salt?: string
  readonly tpotTargetMs?: number
  readonly pinTtlMs?: number
  readonly isConstrained?: boolean
  readonly group?: ForkGroup
}

/** Not for keeping secrets: enough to tell plans apart. */
export function hashWords(words: Int32Array): string {
  let low = 2166136261
  let high = 5381
  for (const word of words) {
    low = Math.imul(low ^ word, 16777619)
    high = (Math.imul(high, 33) + word) | 0
  }
  return `${words.length}.${low >>> 0}.${high >>> 0}`
}

/** Runs a scheduler against an executor that "samples" ids made from sequence and position. */
export class Driver {
  readonly scheduler: Scheduler
  readonly inFlight: StepPlan[] = []
  /** One line per step: which tokens of which sequences. */
  readonly log: string[] = []
  now = 0
  #nextId = 0

  constructor(overrides: Partial<SchedulerConfig> = {}) {
    this.scheduler = new Scheduler(config(overrides))
  }

  add(prompt: number | number[], maxTokens: number, options: AddOptions = {}): Sequence {
    const id = this.#nextId++
    const kind = options.kind ?? 'generate'
    const sequence = createSequence({
      id,
      kind,
      prompt:
        typeof prompt === 'number'
          ? Array.from({ length: prompt }, (_, i) => 1000 * id + i)
          : prompt,
      maxTokens: kind === 'generate' ? maxTokens : 0,
      priority: options.priority ?? 0,
      ...(options.program !== undefined && { program: this.scheduler.program(options.program) }),
      tpotTargetMs: options.tpotTargetMs ?? Number.POSITIVE_INFINITY,
      pinTtlMs: options.pinTtlMs ?? 0,
      isConstrained: options.isConstrained ?? false,
      ...(options.group !== undefined && { group: options.group }),
      arrivalMs: this.now,
      cacheRoot: this.scheduler.prefixCache.root('model', options.salt ?? ''),
      readsCache: options.readsCache ?? kind === 'generate',
    })
    this.scheduler.add(sequence)
    return sequence
  }

  plan(): StepPlan | undefined {
    const plan = this.scheduler.plan(this.now++)
    if (plan === undefined) return undefined
    this.inFlight.push(plan)
    let line = ''
    for (let i = 0; i < plan.numSeqs; i++)
      line += ` ${plan.seqs[i].id}:${plan.starts[i]}+${plan.counts[i]}`
    this.log.push(line.trim())
    return plan
  }

  /** Settles the oldest step; ends sequences at their length, or where `stops` says so. */
  settle(stops: (sequence: Sequence) => boolean = () => false, runMs = 0): Sequence[] {
    const plan = this.inFlight.shift() as StepPlan
    const sampled = new Int32Array(plan.numRows).fill(-1)
    for (let i = 0; i < plan.numSeqs; i++)
      if (plan.samples[i] === 1)
        sampled[plan.firstRows[i]] = 7 * plan.seqs[i].id + plan.starts[i] + plan.counts[i]
    this.scheduler.settle(plan, sampled, runMs)
    const ended: Sequence[] = []
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      if (sequence.state === 'ending' || sequence.state === 'ended') continue
      const done =
        sequence.kind === 'generate'
          ? plan.accepted[i] === 1 && (sequence.numConfirmed === sequence.maxLen || stops(sequence))
          : sequence.numSettled === sequence.promptLen - (sequence.kind === 'score' ? 1 : 0)
      if (!done) continue
      ended.push(sequence)
      this.scheduler.end(sequence, 'finished')
    }
    this.scheduler.release(plan)
    return ended
  }

  /** Runs until nothing is left; the number of steps is bounded. */
  drain(depth = 2, limit = 10_000): void {
    for (let i = 0; i < limit; i++) {
      while (this.inFlight.length < depth && this.plan() !== undefined);
      if (this.inFlight.length === 0) break
      this.settle()
    }
    expect(this.scheduler.numUnfinished).toBe(0)
    expect(this.scheduler.blocks.numUsed - this.scheduler.stats().pinnedBlocks).toBe(0)
  }
}
