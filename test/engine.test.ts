/** What an engine gives, over a fake runtime whose model is a hash of what a row can see. */

import { describe, expect, it } from 'vitest'
import type { GenerateRequest } from '../lib/engine/types.ts'
import { fakeContinuation, fakeLogprob } from './support/fake-binding.ts'
import { codeOf, collect, kvBytes, open, prompt, turns, VOCAB } from './support/fake-engine.ts'
import { createRandom } from './support/random.ts'

describe('Engine', () => {
  it('gives the tokens of the model, with usage and timings', async () => {
    const { engine } = await open()
    const tokens = prompt(20)
    const result = await engine.complete({ tokens, maxTokens: 12 })
    expect(result.tokens).toEqual(fakeContinuation(tokens, 12, VOCAB))
    expect(result.finishReason).toBe('length')
    expect(result.usage).toEqual({ promptTokens: 20, completionTokens: 12, cachedTokens: 0 })
    expect(result.timings.totalMs).toBeGreaterThanOrEqual(result.timings.ttftMs)
    const { prepareMs, queueMs, ttftMs } = result.timings
    expect(Math.min(prepareMs, queueMs)).toBeGreaterThanOrEqual(0)
    expect(ttftMs).toBeGreaterThanOrEqual(prepareMs + queueMs)
    expect(result.text).toBe(engine.tokenizer?.decode(result.tokens))
    const { kvBlocks, running, waiting, finished, generatedTokens } = engine.stats()
    expect(kvBlocks.used).toBe(0)
    expect([running, waiting, finished.length, generatedTokens]).toEqual([0, 0, 1, 12])
  })

  it.each([
    { pipelineDepth: 1 as const },
    { pipelineDepth: 2 as const },
    { nanoBatches: 3 },
    { prefixCache: false },
    { maxNumBatchedTokens: 8, maxNumSeqs: 8 },
    { kvCacheBytes: kvBytes(24), maxModelLen: 256 },
  ])('many requests at once give what each gives alone: %o', async (options) => {
    const { engine, runtime } = await open(options)
    const random = createRandom(3)
    const requests = Array.from({ length: 24 }, (_, i) => ({
      tokens: [...prompt(random.int(0, 40), i % 3), ...prompt(random.int(1, 30), i + 10)],
      maxTokens: random.int(1, 60),
    }))
    const results = await Promise.all(requests.map((request) => engine.complete(request)))
    for (const [i, { tokens, maxTokens }] of requests.entries())
      expect(results[i].tokens).toEqual(fakeContinuation(tokens, maxTokens, VOCAB))
    const stats = engine.stats()
    expect(stats.kvBlocks.used).toBe(0)
    expect(stats.kvBlocks.free + stats.kvBlocks.cached).toBe(stats.kvBlocks.total)
    expect(runtime.maxInFlight).toBe(options.pipelineDepth ?? 2)
    if (options.kvCacheBytes !== undefined) expect(stats.kvBlocks.total).toBe(24)
  })

  it('preempts when blocks run out, and the outputs stay right', async () => {
    const { engine } = await open({ kvCacheBytes: kvBytes(8), maxModelLen: 128 })
    // Short outputs first teach the scheduler to expect short outputs, and to overcommit.
    for (let i = 0; i < 40; i++) await engine.complete({ tokens: [20 + i], maxTokens: 1 })
    const requests = Array.from({ length: 4 }, (_, i) => ({ tokens: prompt(16, i), maxTokens: 80 }))
    const results = await Promise.all(requests.map((request) => engine.complete(request)))
    for (const [i, { tokens }] of requests.entries())
      expect(results[i].tokens).toEqual(fakeContinuation(tokens, 80, VOCAB))
    expect(engine.stats().preemptions).toBeGreaterThan(0)
    expect(engine.stats().kvBlocks.used).toBe(0)
    const preempted = results.map(({ id }) => engine.explain(id)).find((told) => told?.preemptions)
    expect(preempted?.decisions.map(({ reason }) => reason)).toContain('resumed')
  })

  it('reuses a prefix and says how much', async () => {
    const { engine } = await open()
    const tokens = prompt(40)
    const first = await engine.complete({ tokens, maxTokens: 8 })
    const second = await engine.complete({ tokens, maxTokens: 8 })
    expect(second.tokens).toEqual(first.tokens)
    expect([first.usage.cachedTokens, second.usage.cachedTokens]).toEqual([0, 32])
    const salted = await engine.complete({ tokens, maxTokens: 8, cacheSalt: 'other' })
    expect(salted.usage.cachedTokens).toBe(0)
    // A conversation goes on from the generated tokens.
    const longer = [...tokens, ...first.tokens, 99]
    const third = await engine.complete({ tokens: longer, maxTokens: 4 })
    expect(third.tokens).toEqual(fakeContinuation(longer, 4, VOCAB))
    expect(third.usage.cachedTokens).toBeGreaterThanOrEqual(32)
    expect(engine.stats().prefixHits).toBeGreaterThanOrEqual(64)
  })

  it('forward and score see every token, in chunks, beside other requests, without the cache', async () => {
    const { engine } = await open({ maxNumBatchedTokens: 16, maxNumSeqs: 8 })
    const tokens = prompt(50)
    await engine.complete({ tokens, maxTokens: 1 })
    const [{ logits, shape }, { logprobs }, result] = await Promise.all([
      engine.forward(tokens),
      engine.score(tokens),
      engine.complete({ tokens: prompt(9, 5), maxTokens: 20 }),
    ])
    expect(shape).toEqual([50, VOCAB])
    for (const position of [0, 15, 16, 49])
      for (const token of [0, 7, VOCAB - 1])
        expect(logits[position * VOCAB + token]).toBe(
          fakeLogprob(tokens.slice(0, position + 1), token),
        )
    expect(logprobs[0]).toBeNull()
    for (let i = 1; i < 50; i++)
      expect(logprobs[i]).toBe(fakeLogprob(tokens.slice(0, i), tokens[i]))
    expect(result.tokens).toEqual(fakeContinuation(prompt(9, 5), 20, VOCAB))
    expect(await engine.score([5])).toEqual({ logprobs: [null] })
    expect(engine.stats().prefixHits).toBe(0)
  })

  it('seeds decide the samples, whatever else runs', async () => {
    const { engine } = await open()
    const tokens = prompt(5)
    const request: GenerateRequest = { tokens, maxTokens: 10, temperature: 1, seed: 42 }
    const alone = await engine.complete(request)
    const [again, other] = await Promise.all([
      engine.complete(request),
      engine.complete({ ...request, seed: 43n }),
      ...Array.from({ length: 8 }, (_, i) =>
        engine.complete({ tokens: prompt(7, i), maxTokens: 9 }),
      ),
    ])
    expect(again.tokens).toEqual(alone.tokens)
    expect(alone.tokens).toEqual(fakeContinuation(tokens, 10, VOCAB, 42))
    expect(other.tokens).toEqual(fakeContinuation(tokens, 10, VOCAB, 43))
    const [a, b] = await Promise.all([
      engine.complete({ tokens, maxTokens: 10, temperature: 1 }),
      engine.complete({ tokens, maxTokens: 10, temperature: 1 }),
    ])
    expect(a.tokens).not.toEqual(b.tokens)
  })

  it('returns log-probabilities of what was sampled', async () => {
    const { engine } = await open()
    const tokens = prompt(6)
    const result = await engine.complete({ tokens, maxTokens: 3, topLogprobs: 2 })
    const context = [...tokens]
    for (const [i, token] of result.tokens.entries()) {
      expect(result.logprobs?.[i]).toEqual({
        token,
        logprob: fakeLogprob(context, token),
        top: [
          { token: 10, logprob: -0 },
          { token: 11, logprob: -1 },
        ],
      })
      context.push(token)
    }
    expect((await engine.complete({ tokens, maxTokens: 1 })).logprobs).toBeUndefined()
  })

  it('applies a logit bias', async () => {
    const { engine } = await open()
    const result = await engine.complete({
      tokens: prompt(4),
      maxTokens: 3,
      logitBias: { 77: 100 },
    })
    expect(result.tokens).toEqual([77, 77, 77])
  })

  it('keeps penalty counts through preemption', async () => {
    const { engine } = await open({
      kvCacheBytes: kvBytes(8),
      maxModelLen: 128,
      prefixCache: false,
    })
    for (let i = 0; i < 40; i++) await engine.complete({ tokens: [20 + i], maxTokens: 1 })
    const results = await Promise.all(
      [1, 2, 3].map((seed) =>
        engine.complete({
          tokens: prompt(16, seed),
          maxTokens: 80,
          logitBias: { 77: 100 },
          frequencyPenalty: 1,
        }),
      ),
    )
    expect(engine.stats().preemptions).toBeGreaterThan(0)
    for (const { tokens } of results)
      expect(tokens).toEqual(Array.from({ length: 80 }, (_, i) => 77 + i))
  })
})

describe('how an output ends', () => {
  it('stops at a stop token; the token counts, its text does not', async () => {
    const { engine } = await open()
    const tokens = prompt(5)
    const expected = fakeContinuation(tokens, 6, VOCAB)
    const result = await engine.complete({ tokens, stopTokenIds: [expected[5]] })
    expect(result.tokens).toEqual(expected)
    expect(result.finishReason).toBe('stop')
    expect(result.stopReason).toBe(expected[5])
    expect(result.text).toBe(engine.tokenizer?.decode(expected.slice(0, 5)))
    await turns(4)
    expect(engine.stats().kvBlocks.used).toBe(0)
    expect(engine.stats().droppedTokens).toBe(1)
  })

  it('stops at the end-of-sequence tokens of the model unless told not to', async () => {
    const { engine } = await open()
    const request: GenerateRequest = { tokens: prompt(5), maxTokens: 4, logitBias: { 2: 100 } }
    expect((await engine.complete(request)).tokens).toEqual([2])
    const ignoring = await engine.complete({ ...request, ignoreEos: true })
    expect(ignoring.tokens).toEqual([2, 2, 2, 2])
    expect(ignoring.finishReason).toBe('length')
  })

  it('does not stop before minTokens, then stops at once', async () => {
    const { engine } = await open()
    const request: GenerateRequest = {
      tokens: prompt(5),
      maxTokens: 9,
      minTokens: 4,
      logitBias: { 2: 100 },
    }
    const { tokens, finishReason } = await engine.complete(request)
    expect(tokens.slice(0, 4)).not.toContain(2)
    expect([tokens[4], tokens.length, finishReason]).toEqual([2, 5, 'stop'])
  })

  it('ends before a stop string, wherever token borders fall, and streams none of it', async () => {
    const { engine } = await open()
    const tokens = prompt(5)
    const all = await engine.complete({ tokens, maxTokens: 40 })
    for (let begin = 1; begin < 60; begin += 7) {
      const stop = all.text.slice(begin, begin + 9)
      if (/\p{Surrogate}|\ufffd/u.test(stop)) continue
      const { text, chunks } = await collect(engine.generate({ tokens, maxTokens: 40, stop }))
      expect(text).toBe(all.text.slice(0, all.text.indexOf(stop)))
      expect(chunks.at(-1)).toMatchObject({ finishReason: 'stop', stopReason: stop })
    }
    const held = await engine.complete({ tokens, maxTokens: 40, stop: `${all.text.slice(-3)}x` })
    expect(held.text).toBe(all.text)
    expect(held.finishReason).toBe('length')
  })

  it('the longest output is the context', async () => {
    const { engine } = await open({ maxModelLen: 64 })
    const result = await engine.complete({ tokens: prompt(60) })
    expect(result.tokens).toHaveLength(4)
  })

  it.each<[string, GenerateRequest, string]>([
    [
      'prompt and output beyond the context',
      { tokens: prompt(60), maxTokens: 5 },
      'ERR_CONTEXT_LENGTH',
    ],
    ['a prompt that fills the context', { tokens: prompt(64) }, 'ERR_CONTEXT_LENGTH'],
    ['no tokens', { tokens: [] }, 'ERR_USAGE'],
    ['a token beyond the vocabulary', { tokens: [VOCAB] }, 'ERR_USAGE'],
    ['a negative token', { tokens: [-1] }, 'ERR_USAGE'],
    ['half a token', { tokens: [1.5] }, 'ERR_USAGE'],
    ['nothing', {}, 'ERR_USAGE'],
    ['two prompts', { prompt: 'a', tokens: [1] }, 'ERR_USAGE'],
    ['no messages', { messages: [] }, 'ERR_USAGE'],
    ['a bad option', { tokens: [1], temperature: -1 }, 'ERR_USAGE'],
    ['a bad deadline', { tokens: [1], deadlineMs: Number.NaN }, 'ERR_USAGE'],
    ['an endless text', { prompt: 'x'.repeat(70_000) }, 'ERR_CONTEXT_LENGTH'],
  ])('refuses %s', async (_, request, code) => {
    const { engine } = await open({ maxModelLen: 64 })
    expect(await codeOf(engine.complete(request))).toBe(code)
    expect(engine.stats().finished).toEqual({ stop: 0, length: 0, abort: 0 })
  })

  it('refuses when too many wait', async () => {
    const { engine, runtime } = await open({ maxNumSeqs: 1, maxWaiting: 2 }, { manual: true })
    const codes = Promise.all(
      Array.from({ length: 5 }, () => codeOf(engine.complete({ tokens: [11], maxTokens: 2 }))),
    )
    await turns(3)
    runtime.release(10)
    await engine.close()
    expect((await codes).filter((code) => code === 'ERR_QUEUE_FULL')).toHaveLength(2)
  })
})
