/**
 * Attention groups: data-parallel groups of ranks, each with its own sequences, KV blocks and budget
 * (a Scheduler), that step together. A sequence is given to a group when it is queued and stays there.
 * Pure, as Scheduler is.
 */

import type { PrefixCache } from '../kv/prefix-cache.ts'
import type { SchedulerConfig, SchedulerStats } from './config.ts'
import type { StepPlan } from './plan.ts'
import type { EndReason } from './policy.ts'
import type { ProgramAccount } from './programs.ts'
import { Scheduler } from './scheduler.ts'
import type { Sequence } from './sequence.ts'

/** What one step computes in all groups. */
export interface GroupedStep {
  /** Ascending from 0. */
  readonly id: number
  /** By group; undefined: it has nothing to compute, and takes part with no tokens. */
  readonly plans: readonly (StepPlan | undefined)[]
  /** Of the group with the most. */
  readonly maxTokens: number
}

export interface GroupStats extends SchedulerStats {
  readonly blocks: {
    readonly total: number
    readonly free: number
    readonly cached: number
    readonly used: number
  }
}

/** Blocks hashed to find how much of a prompt each group has cached. */
const AFFINITY_HASHES = 512

export class SchedulerGroups {
  readonly #groups: readonly Scheduler[]
  /** Sequences of each group that have not ended. */
  readonly #members: readonly Set<Sequence>[]
  #nextStep = 0

  /** Every group has all of `config`: sequences, tokens, blocks. */
  constructor(config: SchedulerConfig, numGroups: number) {
    this.#groups = Array.from({ length: numGroups }, () => new Scheduler(config))
    this.#members = this.#groups.map(() => new Set())
  }

  get numUnfinished(): number {
    return this.#groups.reduce((sum, group) => sum + group.numUnfinished, 0)
  }

  get hasHeld(): boolean {
    return this.#groups.some((group) => group.hasHeld)
  }

  /** Of any group: chains of equal prefixes have equal hashes in all. */
  get prefixCache(): PrefixCache {
    return this.#groups[0].prefixCache
  }

  /** What a program has been given, in all groups. */
  program(name: string): ProgramAccount {
    return this.#groups[0].program(name)
  }

  /** By group. */
  stats(): GroupStats[] {
    return this.#groups.map((group) => {
      const { numBlocks: total, numFree: free, numCached: cached, numUsed: used } = group.blocks
      return { ...group.stats(), blocks: { total, free, cached, used } }
    })
  }

  /** Queues a sequence in a group; throws what Scheduler.add throws when all are full. */
  add(sequence: Sequence): void {
    const group = this.#choose(sequence)
    this.#groups[group].add(sequence)
    sequence.attentionGroup = group
    this.#members[group].add(sequence)
  }

  end(sequence: Sequence, reason: EndReason): void {
    this.#groupOf(sequence).end(sequence, reason)
    this.#members[sequence.attentionGroup].delete(sequence)
  }

  resume(sequence: Sequence): void {
    this.#groupOf(sequence).resume(sequence)
  }

  pin(sequence: Sequence, ttlMs: number): void {
    this.#groupOf(sequence).pin(sequence, ttlMs)
  }

  queuePosition(sequence: Sequence): number {
    return this.#groupOf(sequence).queuePosition(sequence)
  }

  /** The next step, or undefined when no group has anything to compute. */
  plan(nowMs: number): GroupedStep | undefined {
    const id = this.#nextStep
    const plans = this.#groups.map((group) => group.plan(nowMs, id))
    const maxTokens = plans.reduce((most, plan) => Math.max(most, plan?.numTokens ?? 0), 0)
    if (maxTokens === 0) return undefined
    this.#nextStep++
    return { id, plans, maxTokens }
  }

  /** See Scheduler.settle; `sampled` by group. */
  settle(step: GroupedStep, sampled: readonly Int32Array[], runMs = 0): void {
    step.plans.forEach((plan, group) => {
      if (plan !== undefined) this.#groups[group].settle(plan, sampled[group], runMs)
    })
  }

  release(step: GroupedStep): void {
    step.plans.forEach((plan, group) => {
      if (plan !== undefined) this.#groups[group].release(plan)
    })
  }

  #groupOf(sequence: Sequence): Scheduler {
    return this.#groups[sequence.attentionGroup]
  }

  /**
   * The group that would be done with the prompt first and has the most room: steps that the tokens
   * before it and its own take, those left out that are cached there, and the share of KV blocks that are
   * or will be taken. Forks share blocks, so they share the group. One without room for them only if all are.
   */
  #choose(sequence: Sequence): number {
    if (this.#groups.length === 1) return 0
    const sibling = sequence.group?.members.at(0)
    if (sibling !== undefined) return sibling.attentionGroup
    const costs = this.#groups.map((group, index) => this.#cost(group, index, sequence))
    const all = costs.map((_, index) => index)
    const { size } = sequence.group ?? { size: 1 }
    const open = all.filter((index) => this.#groups[index].room >= size)
    const candidates = open.length > 0 ? open : all
    return candidates.reduce((best, index) => (costs[index] < costs[best] ? index : best))
  }

  #cost({ config, prefixCache }: Scheduler, index: number, sequence: Sequence): number {
    const { maxNumBatchedTokens, blockSize, numBlocks } = config
    let tokens = sequence.promptLen - this.#cachedTokens(prefixCache, sequence, blockSize)
    let blocks = 0
    for (const member of this.#members[index]) {
      tokens += Math.max(1, member.promptLen - member.numComputed)
      blocks += Math.ceil(Math.max(member.promptLen, member.numTokens) / blockSize)
    }
    return tokens / maxNumBatchedTokens + blocks / numBlocks
  }

  #cachedTokens(cache: PrefixCache, sequence: Sequence, blockSize: number): number {
    if (!sequence.readsCache) return 0
    const { probe, tokens, promptLen } = sequence
    probe.numFound = 0
    cache.probe(probe, tokens, promptLen - 1, AFFINITY_HASHES)
    const found = probe.numFound * blockSize
    probe.numFound = 0
    return found
  }
}
