/**
 * Preempted requests whose KV waits on the host: over the fake runtime, whose tokens depend on every
 * KV entry they see, and over the CPU backend with its real copies.
 */

import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { Engine } from '../lib/engine/engine.ts'
import type { EngineOptions } from '../lib/engine/types.ts'
import { fakeContinuation } from './support/fake-binding.ts'
import { codeOf, kvBytes, open, prompt, turns, VOCAB } from './support/fake-engine.ts'

/** Too few blocks for what runs: 10 sequences that grow to 5 blocks each share 16. */
const PRESSED: EngineOptions = {
  kvCacheBytes: kvBytes(16),
  hostKvBytes: kvBytes(40),
  maxNumSeqs: 10,
  admission: 'prompt-fits',
  preemption: 'swap',
}
const LENGTH = 18
const OUTPUT = 60

const swappedOut = (engine: Engine, ids: readonly number[]) =>
  ids.find((id) => {
    const explained = engine.explain(id)
    return (
      explained?.state === 'preempted' &&
      explained.decisions.some((decision) => decision.reason === 'swapped_out')
    )
  })

describe('swapping', () => {
  it.each([1, 2] as const)(
    'gives the tokens of an engine without pressure, depth %i',
    async (pipelineDepth) => {
      const { engine } = await open({ ...PRESSED, pipelineDepth })
      const prompts = Array.from({ length: 10 }, (_, i) => prompt(LENGTH, i))
      const results = await Promise.all(
        prompts.map((tokens) => engine.complete({ tokens, maxTokens: OUTPUT })),
      )
      results.forEach((result, i) => {
        expect(result.tokens).toEqual(fakeContinuation(prompts[i], OUTPUT, VOCAB))
      })
      const stats = engine.stats()
      expect(stats.swapsOut).toBeGreaterThan(3)
      expect(stats.swapsIn).toBe(stats.swapsOut)
      expect(stats.hostBlocks).toEqual({ total: 40, used: 0 })
      expect(stats.kvBlocks.used).toBe(0)
      const reasons = results.flatMap(({ id }) => engine.explain(id)?.decisions ?? [])
      expect(reasons.map(({ reason }) => reason)).toContain('swapped_in')
    },
  )

  it('recomputes where the host has no room, without a difference', async () => {
    const { engine } = await open({ ...PRESSED, hostKvBytes: kvBytes(6) })
    const prompts = Array.from({ length: 10 }, (_, i) => prompt(LENGTH, i))
    const results = await Promise.all(
      prompts.map((tokens) => engine.complete({ tokens, maxTokens: OUTPUT })),
    )
    results.forEach((result, i) => {
      expect(result.tokens).toEqual(fakeContinuation(prompts[i], OUTPUT, VOCAB))
    })
    const { preemptions, swapsOut } = engine.stats()
    expect(swapsOut).toBeGreaterThan(0)
    expect(preemptions).toBeGreaterThan(swapsOut)
  })

  it('frees the host blocks of a request cancelled or overdue while swapped out', async () => {
    const { engine, runtime } = await open(PRESSED, { manual: true })
    const controllers = Array.from({ length: 10 }, () => new AbortController())
    const ids: number[] = []
    const prompts = controllers.map((_, i) => prompt(LENGTH, i))
    const outcomes = prompts.map((tokens, i) =>
      engine
        .complete({
          tokens,
          maxTokens: OUTPUT,
          signal: controllers[i].signal,
          onQueued: (id) => ids.push(id),
        })
        .then(
          (result) => result.tokens,
          (error) => error.code,
        ),
    )
    // The fake runtime waits, so that what is swapped out stays so while the deadline passes.
    let victim: number | undefined
    for (let step = 0; victim === undefined && step < 400; step++) {
      runtime.release()
      await turns(2)
      victim = swappedOut(engine, ids)
    }
    const index = ids.indexOf(victim as number)
    expect(engine.stats().hostBlocks.used).toBeGreaterThan(0)
    const before = engine.stats().hostBlocks.used
    controllers[index].abort()
    expect(engine.stats().hostBlocks.used).toBeLessThan(before)
    expect(engine.explain(victim as number)?.decisions.at(-1)?.reason).toBe('cancelled')
    runtime.release(100_000)
    const results = await Promise.all(outcomes)
    results.forEach((result, i) => {
      expect(result).toEqual(
        i === index ? 'ERR_ABORTED' : fakeContinuation(prompts[i], OUTPUT, VOCAB),
      )
    })
    expect(engine.stats()).toMatchObject({ hostBlocks: { used: 0 }, kvBlocks: { used: 0 } })
  })

  it('a deadline ends a request that is swapped out', async () => {
    const { engine, runtime } = await open(PRESSED, { manual: true })
    const ids: number[] = []
    const codes = Array.from({ length: 10 }, (_, i) =>
      codeOf(
        engine.complete({
          tokens: prompt(LENGTH, i),
          maxTokens: OUTPUT,
          deadlineMs: 1500,
          onQueued: (id) => ids.push(id),
        }),
      ),
    )
    let victim: number | undefined
    for (let step = 0; victim === undefined && step < 400; step++) {
      runtime.release()
      await turns(2)
      victim = swappedOut(engine, ids)
    }
    expect(engine.stats().hostBlocks.used).toBeGreaterThan(0)
    expect(new Set(await Promise.all(codes))).toEqual(new Set(['ERR_DEADLINE']))
    expect(engine.explain(victim as number)?.decisions.at(-1)?.reason).toBe('deadline')
    runtime.release(100_000)
    await turns(6)
    expect(engine.stats()).toMatchObject({ hostBlocks: { used: 0 }, kvBlocks: { used: 0 } })
    const again = await engine.complete({ tokens: [11], maxTokens: 3 })
    expect(again.tokens).toEqual(fakeContinuation([11], 3, VOCAB))
  })
})

const FOLDER = fileURLToPath(new URL('../models/tiny-dense', import.meta.url))

describe('swapping on the CPU backend', () => {
  const requests = Array.from({ length: 8 }, (_, i) => ({
    tokens: prompt(LENGTH + i, i),
    maxTokens: 40,
    ignoreEos: true,
    // Sampling state and penalties must survive the way to the host and back.
    temperature: 0.8,
    seed: i,
    frequencyPenalty: 0.3,
  }))
  const run = async (options: EngineOptions) => {
    await using engine = await Engine.load(FOLDER, { device: 'cpu', precision: 'f32', ...options })
    const results = await Promise.all(requests.map((request) => engine.complete(request)))
    return { tokens: results.map((result) => result.tokens), stats: engine.stats() }
  }

  it.each([1, 2, 4])('gives the same tokens with and without, tp %i', async (tensorParallel) => {
    const calm = await run({ tensorParallel })
    const pressed = await run({
      ...PRESSED,
      tensorParallel,
      // float32 blocks are twice as large.
      kvCacheBytes: kvBytes(2 * 12),
      hostKvBytes: kvBytes(2 * 40),
    })
    expect(pressed.stats.swapsIn).toBeGreaterThan(2)
    expect(calm.stats.preemptions).toBe(0)
    expect(pressed.tokens).toEqual(calm.tokens)
    expect(pressed.stats.hostBlocks.used).toBe(0)
  })
})
