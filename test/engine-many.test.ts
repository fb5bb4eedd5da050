/** Several outputs of one prompt: computed once, each with a seed, an end and a stream of its own. */

import { describe, expect, it, vi } from 'vitest'
import type { Engine } from '../lib/engine/engine.ts'
import { derivedSeed } from '../lib/engine/sampling.ts'
import type { GenerateManyRequest, StepRecord } from '../lib/engine/types.ts'
import { Engine as RealEngine } from '../lib/index.ts'
import { codeOf, collect, FOLDER, kvBytes, open, prompt, turns } from './support/fake-engine.ts'

const SAMPLED = { temperature: 1, seed: 5, ignoreEos: true }

const prefilled = (steps: readonly StepRecord[]) =>
  steps.reduce((sum, { prefillTokens }) => sum + prefillTokens, 0)

/** What the outputs of a request should be: each asked for alone, with its seed. */
async function alone(engine: Engine, { n, ...request }: GenerateManyRequest) {
  const outputs: (readonly number[])[] = []
  for (let index = 0; index < n; index++) {
    const seed = derivedSeed(BigInt(request.seed ?? 0), index)
    outputs.push((await engine.complete({ ...request, seed })).tokens)
  }
  return outputs
}

async function expectIdle(engine: Engine): Promise<void> {
  await vi.waitFor(
    () => {
      const { running, waiting, kvBlocks } = engine.stats()
      expect([running, waiting, kvBlocks.used]).toEqual([0, 0, 0])
    },
    { timeout: 5000, interval: 1 },
  )
}

describe('generateMany and completeMany', () => {
  it.each([true, false])('compute the prompt once, with prefixCache %s', async (prefixCache) => {
    for (const length of [1, 16, 17, 37, 200]) {
      const { engine } = await open({ prefixCache, maxNumBatchedTokens: 64, maxNumSeqs: 32 })
      const request = { tokens: prompt(length), n: 16, maxTokens: 40, ...SAMPLED }
      const { choices, usage } = await engine.completeMany(request)
      // A fork computes the last token again: its logits are what it samples from.
      const { promptTokens } = engine.stats()
      expect(prefilled(engine.recentSteps())).toBeLessThan(length + 16)
      expect(promptTokens).toBe(length)
      expect(usage).toEqual({ promptTokens: length, completionTokens: 640, cachedTokens: 0 })
      const cached = choices.map((choice) => choice.usage.cachedTokens)
      expect(cached).toEqual([0, ...Array(15).fill(length - 1)])
      expect(new Set(choices.map(({ id }) => id)).size).toBe(16)
      expect(choices.map(({ tokens }) => tokens)).toEqual(await alone(engine, request))
      await expectIdle(engine)
    }
  })

  it('give the same outputs when they preempt each other, swapped or computed again', async () => {
    for (const preemption of ['recompute', 'swap'] as const) {
      const sizes = { kvCacheBytes: kvBytes(24), hostKvBytes: kvBytes(40), maxModelLen: 256 }
      const { engine } = await open({ ...sizes, preemption, maxNumSeqs: 8 })
      const request = { tokens: prompt(40), n: 8, maxTokens: 60, ...SAMPLED }
      const { choices } = await engine.completeMany(request)
      const { preemptions, swapsIn } = engine.stats()
      expect(preemptions).toBeGreaterThan(0)
      expect(swapsIn > 0).toBe(preemption === 'swap')
      expect(choices.map(({ tokens }) => tokens)).toEqual(await alone(engine, request))
      await expectIdle(engine)
    }
  })

  it('go on when one is left, and end when all are', async () => {
    const { engine } = await open()
    const request = { tokens: prompt(30), n: 4, maxTokens: 50, ...SAMPLED }
    for (const left of [0, 3]) {
      const streams = engine.generateMany(request)
      const outputs = streams.map(async (stream, index) => {
        if (index !== left) return (await collect(stream)).tokens
        for await (const _ of stream) break
        return []
      })
      const expected = await alone(engine, request)
      expect(await Promise.all(outputs)).toEqual(expected.map((o, i) => (i === left ? [] : o)))
    }
    const streams = engine.generateMany({ ...request, maxTokens: 1500 })
    await streams[0].next()
    for (const stream of streams) await stream.return()
    await expectIdle(engine)
    // Left before anything is read: nobody computes for it.
    const [first, second] = engine.generateMany({ ...request, n: 2 })
    await second.return()
    expect((await collect(first)).tokens).toHaveLength(50)
    expect(engine.stats().finished.abort).toBe(2 + 4)
  })

  it('hand the prompt on when the output that computes it is cancelled', async () => {
    const { engine, runtime } = await open(
      { maxNumBatchedTokens: 32, maxNumSeqs: 8 },
      { manual: true },
    )
    const request = { tokens: prompt(100), n: 3, maxTokens: 5, ...SAMPLED }
    const streams = engine.generateMany(request)
    const outputs = streams.map((stream) => collect(stream))
    await turns(3)
    runtime.release(1)
    await turns(3)
    await streams[0].return()
    runtime.release(1000)
    const tokens = (await Promise.all(outputs)).map((output) => output.tokens)
    const expected = await alone(engine, request)
    expect(tokens).toEqual([[], expected[1], expected[2]])
    await expectIdle(engine)
  })

  it('end together by signal and deadline', async () => {
    const { engine } = await open({}, { latencyMs: 2 })
    const request = { tokens: prompt(30), n: 5, maxTokens: 1000, ...SAMPLED }
    const controller = new AbortController()
    const streams = engine.generateMany({ ...request, signal: controller.signal })
    const codes = streams.map((stream) => codeOf(collect(stream)))
    await turns(5)
    controller.abort()
    expect(await Promise.all(codes)).toEqual(Array(5).fill('ERR_ABORTED'))
    expect(await codeOf(engine.completeMany({ ...request, deadlineMs: 20 }))).toBe('ERR_DEADLINE')
    await expectIdle(engine)
  })

  it('queue all or none, and tell of each', async () => {
    const { engine } = await open({ maxNumSeqs: 2, maxWaiting: 2 })
    const request = { tokens: prompt(9), maxTokens: 3, ...SAMPLED }
    const told: number[] = []
    const onQueued = (_: number, index: number) => told.push(index)
    expect(await codeOf(engine.completeMany({ ...request, n: 5, onQueued }))).toBe('ERR_QUEUE_FULL')
    await expectIdle(engine)
    expect(told).toEqual([])
    await engine.completeMany({ ...request, n: 4, onQueued })
    expect(told).toEqual([0, 1, 2, 3])
    const thrown = new Error('mine')
    const failing = engine.completeMany({
      ...request,
      n: 2,
      onQueued: () => {
        throw thrown
      },
    })
    await expect(failing).rejects.toBe(thrown)
    await expectIdle(engine)
    for (const n of [0, 17, 1.5, '2', undefined])
      expect(await codeOf(engine.completeMany({ ...request, n: n as number }))).toBe('ERR_USAGE')
    expect(() => engine.generateMany({ ...request, n: 2, wrong: 1 } as never)).toThrow()
  })

  it('hold each output to the grammar, on the demo model', async () => {
    const engine = await RealEngine.load(FOLDER, { precision: 'f32', threads: 2 })
    try {
      const request = {
        prompt: 'Once upon a time there was',
        n: 5,
        maxTokens: 20,
        temperature: 1.5,
        seed: 3,
      }
      const { choices } = await engine.completeMany(request)
      expect(choices.map(({ tokens }) => tokens)).toEqual(await alone(engine, request))
      expect(new Set(choices.map(({ text }) => text)).size).toBe(5)
      const grammar = { regex: '[a-f]{3} [0-9]{2}' }
      const held = await engine.completeMany({ ...request, grammar })
      for (const { text } of held.choices) expect(text).toMatch(/^[a-f]{3} [0-9]{2}$/)
      await expectIdle(engine)
    } finally {
      await engine.close()
    }
  })
})
