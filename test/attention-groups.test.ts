/**
 * Data-parallel attention groups: which group a sequence is given to, and engines whose groups step
 * together, each with sequences and blocks of its own.
 */

import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, it } from 'vitest'
import { Engine, type EngineOptions } from '../lib/index.ts'
import { type GroupedStep, SchedulerGroups } from '../lib/scheduler/groups.ts'
import { createPolicy } from '../lib/scheduler/policies/index.ts'
import {
  createForkGroup,
  createSequence,
  type ForkGroup,
  type Sequence,
} from '../lib/scheduler/sequence.ts'
import { createMetrics } from '../lib/server/metrics.ts'
import { codeOf } from './support/fake-engine.ts'
import { EXPERT_FAMILIES, goldenFolder, maxDifference, readGolden } from './support/golden.ts'
import { createRandom } from './support/random.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-moe', import.meta.url))
const BLOCK = 4

/** Groups, and an executor that samples token 7 wherever a row samples. */
class Groups {
  readonly scheduler: SchedulerGroups
  #nextId = 0

  constructor(numGroups: number, maxWaiting = 2) {
    this.scheduler = new SchedulerGroups(
      {
        maxNumSeqs: 4,
        maxNumBatchedTokens: 32,
        maxRows: 16,
        maxModelLen: 256,
        numBlocks: 64,
        blockSize: BLOCK,
        numSlots: 8,
        maxWaiting,
        prefixCache: true,
        policy: createPolicy(),
        cacheKey: Int32Array.of(1, 2, 3, 4),
      },
      numGroups,
    )
  }

  add(prompt: readonly number[], group?: ForkGroup) {
    const sequence = createSequence({
      id: this.#nextId++,
      kind: 'generate',
      prompt,
      maxTokens: 4,
      arrivalMs: 0,
      cacheRoot: this.scheduler.prefixCache.root('model', ''),
      readsCache: true,
      ...(group && { group }),
    })
    this.scheduler.add(sequence)
    return sequence
  }

  settle(step: GroupedStep) {
    const sampled = step.plans.map((plan) => new Int32Array(plan?.numRows ?? 0).fill(7))
    this.scheduler.settle(step, sampled)
    for (const plan of step.plans)
      for (const sequence of plan?.seqs.slice(0, plan.numSeqs) ?? [])
        if (sequence.numConfirmed === sequence.maxLen) this.scheduler.end(sequence, 'finished')
    this.scheduler.release(step)
  }

  drain(): void {
    for (let step = this.scheduler.plan(1); step !== undefined; step = this.scheduler.plan(1))
      this.settle(step)
    expect(this.scheduler.numUnfinished).toBe(0)
  }
}

const tokens = (length: number, first: number) => Array.from({ length }, (_, i) => first + i)

describe('SchedulerGroups', () => {
  it('gives a sequence to the group with the least to do', () => {
    const groups = new Groups(3)
    const placed = [40, 8, 8, 8, 8, 8].map((length, i) => groups.add(tokens(length, 100 * (i + 1))))
    expect(placed.map(({ attentionGroup }) => attentionGroup)).toEqual([0, 1, 2, 1, 2, 1])
    groups.drain()
  })

  it('steps all groups together, each within its own budget', () => {
    const groups = new Groups(3)
    for (let i = 0; i < 2; i++) groups.add(tokens(60, 100 * (i + 1)))
    const step = groups.scheduler.plan(0)!
    expect(step.plans.map((plan) => plan?.numTokens)).toEqual([32, 32, undefined])
    expect(step.maxTokens).toBe(32)
    groups.settle(step)
    expect(groups.scheduler.plan(0)?.id).toBe(1)
  })

  it('goes where the prompt is cached, unless that group is much busier', () => {
    const groups = new Groups(2)
    const prompt = tokens(24, 100)
    groups.add(tokens(9, 500))
    expect(groups.add(prompt).attentionGroup).toBe(1)
    groups.drain()
    expect(groups.add(prompt).attentionGroup).toBe(1)
    for (let i = 0; i < 3; i++) groups.add(tokens(24, 1000 + 100 * i))
    groups.drain()
    expect(groups.scheduler.stats()[1]?.prefixHits).toBeGreaterThan(0)
    const busy = new Groups(2)
    busy.add(tokens(9, 500))
    busy.add(prompt)
    busy.drain()
    // The other group has the first of these, so this one gets the most of them.
    for (let i = 0; i < 4; i++)
      expect(busy.add(tokens(60, 2000 + 100 * i)).attentionGroup).toBe(i % 2)
    busy.add(tokens(60, 5000))
    expect(busy.scheduler.stats().map(({ waiting }) => waiting)).toEqual([3, 2])
    expect(busy.add(prompt).attentionGroup).toBe(1)
  })

  it('keeps the outputs of one prompt together', () => {
    const groups = new Groups(4)
    const forks = createForkGroup(3)
    const prompt = tokens(20, 100)
    const placed = [0, 1, 2].map(() => groups.add(prompt, forks).attentionGroup)
    expect(new Set(placed).size).toBe(1)
    groups.drain()
  })

  it('gives the outputs of one prompt to a group that has room for all of them', () => {
    const groups = new Groups(2, 1)
    const placed = [60, 8, 8, 8, 8].map((length, i) => groups.add(tokens(length, 100 * (i + 1))))
    expect(placed.map(({ attentionGroup }) => attentionGroup)).toEqual([0, 1, 1, 1, 1])
    // The other group has less to do, and room for one.
    const forks = createForkGroup(3)
    for (let i = 0; i < 3; i++) expect(groups.add(tokens(8, 900), forks).attentionGroup).toBe(0)
    expect(groups.add(tokens(8, 1000)).attentionGroup).toBe(1)
    groups.drain()
  })

  it('refuses only when every group is full', () => {
    const groups = new Groups(2, 1)
    const placed = Array.from({ length: 10 }, (_, i) => groups.add(tokens(8, 20 * i)))
    const inFirst = placed.filter(({ attentionGroup }) => attentionGroup === 0)
    expect(inFirst).toHaveLength(5)
    expect(() => groups.add(tokens(8, 900))).toThrow('raise maxWaiting')
    groups.scheduler.end(inFirst[0]!, 'cancelled')
    expect(groups.add(tokens(8, 900)).attentionGroup).toBe(0)
    groups.drain()
  })
})

describe('random traces over groups', () => {
  it.each([1, 2, 3, 4, 5])(
    'every sequence ends once, and every group ends empty: seed %i',
    (seed) => {
      const random = createRandom(seed)
      for (let trial = 0; trial < 20; trial++) {
        const groups = new Groups(random.int(1, 4), 8)
        const added: Sequence[] = []
        const inFlight: GroupedStep[] = []
        let refused = 0
        for (let turn = 0; turn < 60; turn++) {
          const choice = random.next()
          if (choice < 0.35) {
            const prompt = tokens(random.int(1, 60), 100 * random.int(1, 6))
            const forks = random.next() < 0.2 ? createForkGroup(3) : undefined
            try {
              for (let fork = 0; fork < (forks ? 3 : 1); fork++)
                added.push(groups.add(prompt, forks))
            } catch (error) {
              expect(error).toMatchObject({ code: 'ERR_QUEUE_FULL' })
              refused++
            }
          } else if (choice < 0.45 && added.length > 0) {
            groups.scheduler.end(added[random.int(0, added.length - 1)]!, 'cancelled')
          } else if (inFlight.length < 2) {
            const step = groups.scheduler.plan(turn)
            if (step !== undefined) inFlight.push(step)
          } else {
            groups.settle(inFlight.shift()!)
          }
          for (const step of inFlight)
            step.plans.forEach((plan, group) => {
              for (const { attentionGroup } of plan?.seqs.slice(0, plan.numSeqs) ?? [])
                expect(attentionGroup).toBe(group)
            })
        }
        for (const step of inFlight) groups.settle(step)
        groups.drain()
        expect(added.length + refused).toBeGreaterThan(0)
        for (const { state } of added) expect(state).toBe('ended')
        for (const { running, waiting, blocks } of groups.scheduler.stats()) {
          expect([running, waiting, blocks.used]).toEqual([0, 0, 0])
          expect(blocks.free + blocks.cached).toBe(blocks.total)
        }
      }
    },
  )
})

const engines: Engine[] = []
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.close()
})

async function load(options: EngineOptions = {}, folder = FOLDER): Promise<Engine> {
  const engine = await Engine.load(folder, { precision: 'f32', threads: 4, ...options })
  engines.push(engine)
  return engine
}

const PROMPTS = Array.from({ length: 11 }, (_, index) => {
  const random = createRandom(index + 1)
  return Array.from({ length: 5 + 9 * index }, () => random.int(3, 500))
})

const generate = (engine: Engine, prompt: readonly number[], signal?: AbortSignal) =>
  engine.complete({
    tokens: prompt,
    maxTokens: 30,
    temperature: 0,
    ignoreEos: true,
    ...(signal && { signal }),
  })

describe('engines with several groups', () => {
  it.each([
    { expertParallel: 4 },
    { expertParallel: 4, nanoBatches: 2 },
    { expertParallel: 4, tensorParallel: 2 },
    { expertParallel: 4, expertSlots: 1, expertBalancePeriod: 1 },
    { expertParallel: 4, maxNumBatchedTokens: 16, maxNumSeqs: 2 },
  ])('give every sequence what one group gives: %o', async (options) => {
    const { tensorParallel = 1 } = options
    const one = await load({ tensorParallel })
    const expected = []
    for (const prompt of PROMPTS) expected.push((await generate(one, prompt)).tokens)
    const engine = await load(options)
    const groups = 4 / tensorParallel
    expect(engine.info.attentionGroups).toBe(groups)
    const results = PROMPTS.map((prompt) => generate(engine, prompt))
    const outputs = await Promise.all(results)
    expect(outputs.map((output) => output.tokens)).toEqual(expected)
    const { kvBlocks, ...stats } = engine.stats()
    expect(stats.groups).toHaveLength(groups)
    expect(kvBlocks.used).toBe(0)
    // All were computed, and every group has cached some.
    for (const group of stats.groups) expect(group.kvBlocks.cached).toBeGreaterThan(0)
  })

  it('a cancelled sequence leaves the others of its group and of other groups alone', async () => {
    const engine = await load({ expertParallel: 4 })
    const expected: (readonly number[])[] = []
    for (const prompt of PROMPTS) expected.push((await generate(engine, prompt)).tokens)
    const controllers = PROMPTS.map(() => new AbortController())
    const runs = PROMPTS.map((prompt, i) => generate(engine, prompt, controllers[i]!.signal))
    await new Promise((resolve) => setTimeout(resolve, 5))
    for (const i of [1, 4, 7]) controllers[i]!.abort()
    const outcomes = await Promise.allSettled(runs)
    outcomes.forEach((outcome, i) => {
      if (outcome.status === 'fulfilled') expect(outcome.value.tokens).toEqual(expected[i])
      else expect([1, 4, 7]).toContain(i)
    })
    expect(outcomes.map(({ status }) => status)).toContain('rejected')
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvBlocks: { used: 0 } })
  })

  it.each(['recompute', 'swap'])('groups preempt by themselves: %s', async (preemption) => {
    const calm = await load({ expertParallel: 2 })
    const expected = await Promise.all(PROMPTS.map((prompt) => generate(calm, prompt)))
    // Nine blocks of 16 tokens for each group, admitted as soon as a prompt fits.
    const { kvCacheBytes, kvBlocks } = calm.info
    const blockBytes = kvCacheBytes / kvBlocks
    const engine = await load({
      expertParallel: 2,
      kvCacheBytes: blockBytes * 9,
      hostKvBytes: preemption === 'swap' ? blockBytes * 20 : 0,
      preemption,
      admission: 'prompt-fits',
      prefixCache: false,
    })
    const outputs = await Promise.all(PROMPTS.map((prompt) => generate(engine, prompt)))
    expect(outputs.map((output) => output.tokens)).toEqual(expected.map(({ tokens }) => tokens))
    const { groups, preemptions, swapsIn } = engine.stats()
    expect(preemptions).toBeGreaterThan(0)
    if (preemption === 'swap') expect(swapsIn).toBeGreaterThan(0)
    expect(groups.reduce((sum, group) => sum + group.preemptions, 0)).toBe(preemptions)
    expect(engine.stats().kvBlocks.used).toBe(0)
  })

  it('several outputs of a prompt, and structured output, in every group', async () => {
    const [one, engine] = [await load(), await load({ expertParallel: 4 })]
    const many = (on: Engine) =>
      Promise.all(
        PROMPTS.slice(0, 5).map((prompt, seed) =>
          on.completeMany({ tokens: prompt, n: 3, temperature: 1, seed, maxTokens: 20 }),
        ),
      )
    const tokensOf = (results: Awaited<ReturnType<typeof many>>) =>
      results.map(({ choices }) => choices.map((choice) => choice.tokens))
    expect(tokensOf(await many(engine))).toEqual(tokensOf(await many(one)))
    const outputs = await Promise.all(
      [1, 2, 3, 4, 5].map((seed) =>
        engine.complete({
          prompt: 'A number: ',
          grammar: { regex: '[0-9]{3}-[0-9]{2}' },
          temperature: 1,
          maxTokens: 30,
          seed,
        }),
      ),
    )
    for (const { text } of outputs) expect(text).toMatch(/^[0-9]{3}-[0-9]{2}$/)
  })

  it('has a series for each group in the metrics', async () => {
    const engine = await load({ expertParallel: 2 })
    const text = await createMetrics(engine, 'tiny-moe').render()
    const series = text.split('\n').filter((line) => line.startsWith('vllm:num_requests_running{'))
    expect(series).toHaveLength(2)
    expect(series.map((line) => /engine="(\d)"/.exec(line)?.[1])).toEqual(['0', '1'])
  })

  it('refuses an event log, which is of one group', async () => {
    const eventLog = 'events.jsonl'
    expect(await codeOf(load({ expertParallel: 2, eventLog }))).toBe('ERR_UNSUPPORTED_OPTION')
  })
})

describe.each(EXPERT_FAMILIES)('%s', (family) => {
  it.each([2, 4])('prompts over %i groups at once: the logits of the reference', async (ep) => {
    const folder = goldenFolder(family)
    const prompts = readGolden(folder)
    const engine = await load({ expertParallel: ep }, folder)
    const wanted = [...prompts, ...prompts, ...prompts]
    const results = await Promise.all(wanted.map(({ tokens }) => engine.forward(tokens)))
    results.forEach(({ logits, shape }, i) => {
      const { tokens, logits: expected } = wanted[i]!
      const rows = tokens.map((_, row) => logits.subarray(row * shape[1], (row + 1) * shape[1]))
      expect(maxDifference(rows, expected)).toBeLessThanOrEqual(2e-4)
    })
  })
})
