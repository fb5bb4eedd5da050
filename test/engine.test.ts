/** The engine over a fake runtime whose model is a hash of what a row can see. */

import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, it } from 'vitest'
import { assembleEngine } from '../lib/engine/assemble.ts'
import { Engine } from '../lib/engine/engine.ts'
import type { EngineOptions, GenerateChunk, GenerateRequest } from '../lib/engine/types.ts'
import { EngineError } from '../lib/errors.ts'
import {
  createFakeBinding,
  type FakeOptions,
  type FakeRuntime,
  fakeContinuation,
  fakeLogprob,
} from './support/fake-binding.ts'
import { createRandom } from './support/random.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-dense', import.meta.url))
const VOCAB = 2048

const engines: Engine[] = []
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.close()
})

async function open(
  options: EngineOptions = {},
  fake: FakeOptions = {},
): Promise<{ engine: Engine; runtime: FakeRuntime }> {
  const binding = createFakeBinding(fake)
  const engine = new Engine(await assembleEngine(FOLDER, options, binding))
  engines.push(engine)
  return { engine, runtime: binding.runtimes[0] }
}

/** Bytes of `blocks` KV blocks of tiny-dense at its own precision. */
const kvBytes = (blocks: number) => blocks * 4 * 2 * 4 * 16 * 32 * 2

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
  } catch (error) {
    expect(error).toBeInstanceOf(EngineError)
    return (error as EngineError).code
  }
  return 'none'
}

async function collect(stream: AsyncIterable<GenerateChunk>) {
  const chunks: GenerateChunk[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return {
    chunks,
    text: chunks.map((chunk) => chunk.text).join(''),
    tokens: chunks.flatMap((chunk) => chunk.tokens),
  }
}

const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

function prompt(length: number, seed = 1): number[] {
  const random = createRandom(seed)
  return Array.from({ length }, () => random.int(10, VOCAB - 1))
}

describe('Engine', () => {
  it('gives the tokens of the model, with usage and timings', async () => {
    const { engine } = await open()
    const tokens = prompt(20)
    const result = await engine.complete({ tokens, maxTokens: 12 })
    expect(result.tokens).toEqual(fakeContinuation(tokens, 12, VOCAB))
    expect(result.finishReason).toBe('length')
    expect(result.usage).toEqual({ promptTokens: 20, completionTokens: 12, cachedTokens: 0 })
    expect(result.timings.totalMs).toBeGreaterThanOrEqual(result.timings.ttftMs)
    expect(result.timings.ttftMs).toBeGreaterThanOrEqual(result.timings.queueMs)
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

describe('streams', () => {
  it('do nothing until they are read', async () => {
    const { engine, runtime } = await open()
    engine.generate({ tokens: [11], maxTokens: 5 })
    engine.generate({ tokens: [] })
    await turns(5)
    expect(runtime.steps).toHaveLength(0)
  })

  it('give a slow consumer what it missed at once', async () => {
    const { engine } = await open()
    const tokens = prompt(5)
    const stream = engine.generate({ tokens, maxTokens: 30, logprobs: true })
    const first = await stream.next()
    await turns(120)
    const second = await stream.next()
    expect(await stream.next()).toEqual({ done: true, value: undefined })
    expect(second.value.finishReason).toBe('length')
    expect([...first.value.tokens, ...second.value.tokens]).toEqual(
      fakeContinuation(tokens, 30, VOCAB),
    )
    expect(second.value.logprobs).toHaveLength(second.value.tokens.length)
  })

  it('cancel the request when the consumer leaves', async () => {
    const { engine, runtime } = await open()
    for await (const chunk of engine.generate({ tokens: prompt(5) })) {
      if (chunk.tokens.length > 0) break
    }
    await turns(6)
    const steps = runtime.steps.length
    await turns(10)
    expect(runtime.steps.length).toBe(steps)
    expect(engine.stats()).toMatchObject({ running: 0, finished: { abort: 1 } })
    expect(engine.stats().kvBlocks.used).toBe(0)
  })

  it('can be left while a chunk is awaited', async () => {
    const { engine, runtime } = await open({}, { manual: true })
    const stream = engine.generate({ tokens: prompt(5) })
    const waiting = stream.next()
    await turns(3)
    await stream.return()
    expect(await waiting).toEqual({ done: true, value: undefined })
    runtime.release(10)
    await turns(3)
    expect(engine.stats().kvBlocks.used).toBe(0)
  })
})

describe('cancellation', () => {
  it('an aborted signal stops the work within one step and frees everything', async () => {
    const { engine, runtime } = await open()
    const controller = new AbortController()
    let reads = 0
    const code = await codeOf(
      (async () => {
        for await (const _ of engine.generate({
          tokens: prompt(40),
          signal: controller.signal,
        })) {
          if (++reads === 5) controller.abort(new Error('enough'))
        }
      })(),
    )
    expect(code).toBe('ERR_ABORTED')
    expect(reads).toBe(5)
    const steps = runtime.steps.length
    await turns(6)
    expect(runtime.steps.length).toBe(steps)
    expect(engine.stats().kvBlocks.used).toBe(0)
  })

  it('works before, during the prompt, and while waiting', async () => {
    const { engine, runtime } = await open(
      { maxNumBatchedTokens: 16, maxNumSeqs: 1 },
      { manual: true },
    )
    const early = new AbortController()
    early.abort()
    expect(await codeOf(engine.complete({ tokens: [11], signal: early.signal }))).toBe(
      'ERR_ABORTED',
    )

    const during = new AbortController()
    const waiting = new AbortController()
    const codes = Promise.all([
      codeOf(engine.complete({ tokens: prompt(200), signal: during.signal })),
      codeOf(engine.complete({ tokens: prompt(9), signal: waiting.signal })),
      codeOf(engine.forward(prompt(30), { signal: waiting.signal })),
    ])
    await turns(3)
    runtime.release(2)
    await turns(3)
    expect(engine.stats()).toMatchObject({ running: 1, waiting: 2 })
    waiting.abort()
    during.abort()
    runtime.release(10)
    expect(await codes).toEqual(['ERR_ABORTED', 'ERR_ABORTED', 'ERR_ABORTED'])
    await turns(5)
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, stepsInFlight: 0 })
    expect(engine.stats().kvBlocks.used).toBe(0)
    const result = await engine.complete({ tokens: [11], maxTokens: 2 })
    expect(result.tokens).toEqual(fakeContinuation([11], 2, VOCAB))
  })

  it('a deadline ends the request with its own code', async () => {
    const { engine, runtime } = await open({}, { manual: true })
    const code = await codeOf(engine.complete({ tokens: [11], deadlineMs: 15 }))
    expect(code).toBe('ERR_DEADLINE')
    runtime.release(10)
    await turns(4)
    expect(engine.stats().kvBlocks.used).toBe(0)
  })

  it('leaves no timer behind', async () => {
    const { engine } = await open()
    const timers = () =>
      process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length
    const before = timers()
    const { signal } = new AbortController()
    await engine.complete({ tokens: [11], maxTokens: 3, deadlineMs: 60_000, signal })
    await engine.score([11, 12], { deadlineMs: 60_000 })
    await codeOf(engine.complete({ tokens: [], deadlineMs: 60_000 }))
    await collect(engine.generate({ tokens: [11], maxTokens: 3, deadlineMs: 60_000 }))
    await engine.close({ drainMs: 60_000 })
    expect(timers()).toBe(before)
  })

  it('leaves no listener on the signal', async () => {
    const { engine } = await open()
    let listeners = 0
    const { signal } = new AbortController()
    const add = signal.addEventListener.bind(signal)
    const remove = signal.removeEventListener.bind(signal)
    signal.addEventListener = (...args: Parameters<typeof add>) => {
      listeners++
      add(...args)
    }
    signal.removeEventListener = (...args: Parameters<typeof remove>) => {
      listeners--
      remove(...args)
    }
    await engine.complete({ tokens: [11], maxTokens: 3, signal })
    await engine.score([11, 12], { signal })
    await codeOf(engine.complete({ tokens: [11], maxTokens: 3, temperature: -1, signal }))
    expect(listeners).toBe(0)
  })
})

describe('explain', () => {
  it('tells the story of a request, for a while after its end', async () => {
    const { engine } = await open()
    let id = -1
    const result = await engine.complete({
      tokens: prompt(5),
      maxTokens: 3,
      onQueued: (queued) => {
        id = queued
        expect(engine.explain(queued)).toMatchObject({ state: 'waiting', queuePosition: 0 })
      },
    })
    expect(result.id).toBe(id)
    expect(engine.explain(id)).toMatchObject({
      promptTokens: 5,
      computedTokens: 7,
      generatedTokens: 3,
      kvBlocks: 0,
    })
    expect(engine.explain(id)?.decisions.map(({ reason, count }) => [reason, count])).toEqual([
      ['queued', 1],
      ['admitted', 1],
      ['prefill', 1],
      ['decode', 2],
      ['finished', 1],
    ])
    expect(engine.explain(12_345)).toBeUndefined()
  })
})

describe('failure and close', () => {
  it('a fault rejects what is pending and what comes later with the root cause', async () => {
    const { engine, runtime } = await open({ maxNumBatchedTokens: 64 })
    runtime.failAt = 4
    const codes = await Promise.all([
      codeOf(engine.complete({ tokens: prompt(5), maxTokens: 50 })),
      codeOf(collect(engine.generate({ tokens: prompt(6), maxTokens: 50 }))),
      codeOf(engine.forward(prompt(600))),
    ])
    expect(codes).toEqual(['ERR_RANK_FAULT', 'ERR_RANK_FAULT', 'ERR_RANK_FAULT'])
    const later = await engine.complete({ tokens: [11] }).catch((error: EngineError) => error)
    expect(later).toMatchObject({ code: 'ERR_RANK_FAULT', rank: 1, op: 'layers.0.attention' })
    expect(await codeOf(engine.score([11, 12]))).toBe('ERR_RANK_FAULT')
    await turns(4)
    expect(engine.stats()).toMatchObject({ failed: 'ERR_RANK_FAULT', running: 0, stepsInFlight: 0 })
    expect(engine.stats().kvBlocks.used).toBe(0)
    await engine.close()
  })

  it('closes in flight: pending requests fail, steps settle first, the second close is the first', async () => {
    const { engine, runtime } = await open({}, { latencyMs: 5 })
    const code = codeOf(engine.complete({ tokens: prompt(5) }))
    await turns(3)
    const closing = engine.close()
    expect(engine.close()).toBe(closing)
    await closing
    expect(await code).toBe('ERR_CLOSED')
    expect(runtime.closed).toBe(true)
    expect(engine.stats()).toMatchObject({ stepsInFlight: 0, running: 0 })
    expect(await codeOf(engine.complete({ tokens: [11] }))).toBe('ERR_CLOSED')
    expect(await codeOf(engine.forward([11]))).toBe('ERR_CLOSED')
    expect(await codeOf(engine.score([11]))).toBe('ERR_CLOSED')
    expect(await codeOf(engine.tokenize({ prompt: 'a' }))).toBe('ERR_CLOSED')
  })

  it('drains when asked to, for as long as asked', async () => {
    const { engine } = await open()
    const result = engine.complete({ tokens: prompt(5), maxTokens: 20 })
    await turns(3)
    const closing = engine.close({ drainMs: 10_000 })
    expect(await codeOf(engine.complete({ tokens: [11] }))).toBe('ERR_CLOSED')
    expect((await result).tokens).toHaveLength(20)
    await closing

    const slow = await open({}, { latencyMs: 5 })
    const code = codeOf(slow.engine.complete({ tokens: prompt(5) }))
    await turns(3)
    await slow.engine.close({ drainMs: 20 })
    expect(await code).toBe('ERR_CLOSED')
  })

  it('a request whose template is being rendered fails with ERR_CLOSED', async () => {
    const { engine } = await open()
    const code = codeOf(engine.complete({ messages: [{ role: 'user', content: 'Hello' }] }))
    await engine.close()
    expect(await code).toBe('ERR_CLOSED')
  })

  it('is disposed of by `await using`', async () => {
    const { engine, runtime } = await open()
    await engine[Symbol.asyncDispose]()
    expect(runtime.closed).toBe(true)
  })
})

describe('loading', () => {
  const load = (options: EngineOptions, fake: FakeOptions = {}) => {
    const binding = createFakeBinding(fake)
    const promise = assembleEngine(FOLDER, options, binding)
    return { binding, promise }
  }

  it.each<[EngineOptions, string]>([
    [{ tensorParallel: 3 }, 'ERR_UNSUPPORTED_LAYOUT'],
    [{ expertParallel: 2 }, 'ERR_UNSUPPORTED_LAYOUT'],
    [{ tensorParallel: 0 }, 'ERR_USAGE'],
    [{ nanoBatches: 5 }, 'ERR_USAGE'],
    [{ device: 'cuda' }, 'ERR_NO_DEVICE'],
    [{ devices: ['cuda:0'] }, 'ERR_NO_DEVICE'],
    [{ devices: [] }, 'ERR_USAGE'],
    [{ schedulerPolicy: 'toString' }, 'ERR_USAGE'],
    [{ kvCacheBytes: 1 }, 'ERR_OUT_OF_MEMORY'],
    [{ maxModelLen: 4096 }, 'ERR_USAGE'],
  ])('refuses %j', async (options, code) => {
    const { promise, binding } = load(options)
    expect(await codeOf(promise)).toBe(code)
    expect(binding.runtimes).toEqual([])
  })

  it('closes the runtime when a later stage fails', async () => {
    const { promise, binding } = load({}, { failLoadWeights: true })
    expect(await codeOf(promise)).toBe('ERR_IO')
    expect(binding.runtimes[0].closed).toBe(true)
  })

  it('can be cancelled', async () => {
    const { promise, binding } = load({ signal: AbortSignal.abort() })
    expect(await codeOf(promise)).toBe('ERR_ABORTED')
    expect(binding.runtimes.every((runtime) => runtime.closed)).toBe(true)
  })

  it('says what was loaded and passes the options on', async () => {
    const { engine, runtime } = await open({ tensorParallel: 2, nanoBatches: 2, threads: 4 })
    expect(engine.info).toMatchObject({
      architecture: 'LlamaForCausalLM',
      world: 2,
      devices: ['cpu', 'cpu'],
      vocabSize: VOCAB,
      maxModelLen: 2048,
      program: { nanoBatches: 2 },
    })
    expect(runtime.options).toMatchObject({ tp: 2, threadsPerRank: 2, waitTimeoutMs: 30_000 })
  })
})
