/** How requests and engines begin, are cancelled, fail and end, over a fake runtime. */

import { describe, expect, it } from 'vitest'
import { assembleEngine } from '../lib/engine/assemble.ts'
import type { EngineOptions } from '../lib/engine/types.ts'
import type { EngineError } from '../lib/errors.ts'
import { createFakeBinding, type FakeOptions, fakeContinuation } from './support/fake-binding.ts'
import { codeOf, collect, FOLDER, open, prompt, turns, VOCAB } from './support/fake-engine.ts'

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
