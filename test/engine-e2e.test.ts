/** The engine on the real addon and the demo model, against what transformers computes in float32. */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  type ChatMessage,
  Engine,
  type EngineError,
  type EngineOptions,
  type GenerateRequest,
  type GenerateResult,
} from '../lib/index.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-dense', import.meta.url))

interface ExpectedCase {
  readonly prompt?: string
  readonly messages?: readonly ChatMessage[]
  readonly tools?: readonly unknown[]
  readonly prompt_ids: readonly number[]
  readonly greedy_ids: readonly number[]
  readonly text: string
  readonly text_with_special: string
}

const CASES: readonly ExpectedCase[] = JSON.parse(
  readFileSync(`${FOLDER}/expected.json`, 'utf8'),
).cases

const STORY = CASES[0]

async function withEngine<T>(options: EngineOptions, use: (engine: Engine) => Promise<T>) {
  const engine = await Engine.load(FOLDER, { precision: 'f32', threads: 2, ...options })
  try {
    return await use(engine)
  } finally {
    await engine.close()
  }
}

function requestOf(expected: ExpectedCase): GenerateRequest {
  const { prompt, messages, tools } = expected
  return {
    ...(prompt !== undefined && { prompt }),
    ...(messages !== undefined && { messages }),
    ...(tools !== undefined && { tools }),
    temperature: 0,
    maxTokens: 200,
  }
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
  } catch (error) {
    return (error as EngineError).code
  }
  return 'none'
}

/** Waits, for a bounded time, until no step is in flight. */
async function quiet(engine: Engine): Promise<void> {
  for (let i = 0; i < 500 && engine.stats().stepsInFlight > 0; i++)
    await new Promise((resolve) => setTimeout(resolve, 10))
  expect(engine.stats()).toMatchObject({ stepsInFlight: 0, running: 0, waiting: 0 })
  expect(engine.stats().kvBlocks.used).toBe(0)
}

const greedyOf = (results: readonly GenerateResult[]) => results.map((result) => result.tokens)
const EXPECTED_TOKENS = CASES.map(({ greedy_ids }) => greedy_ids)

describe.each([1, 2])('tp %i', (tensorParallel) => {
  let engine: Engine
  beforeAll(async () => {
    engine = await Engine.load(FOLDER, { tensorParallel, precision: 'f32', threads: 2 })
  })
  afterAll(() => engine.close())

  it.each(CASES.map((expected, i) => [i, expected] as const))('case %i', async (_, expected) => {
    const request = requestOf(expected)
    expect(await engine.tokenize(request)).toEqual(expected.prompt_ids)
    const result = await engine.complete(request)
    expect(result.tokens).toEqual(expected.greedy_ids)
    expect(result.text).toBe(expected.text)
    expect(result.finishReason).toBe('stop')
    expect(result.stopReason).toBe(expected.greedy_ids.at(-1))
    const special = await engine.complete({ ...request, skipSpecialTokens: false })
    expect(special.text).toBe(expected.text_with_special)
  })

  it('score agrees with forward, forward with the greedy tokens', async () => {
    const tokens = [...STORY.prompt_ids, ...STORY.greedy_ids]
    const { logits, shape } = await engine.forward(tokens)
    const { logprobs } = await engine.score(tokens)
    expect(shape).toEqual([tokens.length, 2048])
    expect(logprobs[0]).toBeNull()
    for (let i = 0; i + 1 < tokens.length; i++) {
      const row = logits.subarray(i * 2048, (i + 1) * 2048)
      const max = row.reduce((a, b) => Math.max(a, b))
      if (i + 1 >= STORY.prompt_ids.length) expect(row.indexOf(max)).toBe(tokens[i + 1])
      const sum = row.reduce((total, logit) => total + Math.exp(logit - max), 0)
      const logprob = row[tokens[i + 1]] - max - Math.log(sum)
      expect(Math.abs((logprobs[i + 1] as number) - logprob)).toBeLessThan(1e-4)
    }
  })

  it('returns the log-probabilities that score gives', async () => {
    const { tokens, logprobs } = await engine.complete({
      tokens: STORY.prompt_ids,
      maxTokens: 20,
      topLogprobs: 3,
    })
    const scored = await engine.score([...STORY.prompt_ids, ...tokens])
    for (const [i, { token, logprob, top }] of (logprobs ?? []).entries()) {
      expect(token).toBe(tokens[i])
      expect(
        Math.abs(logprob - (scored.logprobs[STORY.prompt_ids.length + i] as number)),
      ).toBeLessThan(1e-4)
      expect(top).toHaveLength(3)
      expect(top[0]).toEqual({ token, logprob })
      expect(top[1].logprob).toBeLessThanOrEqual(logprob)
    }
    expect(logprobs).toHaveLength(20)
  })

  it('a request gives the same alone and among 16 others', async () => {
    const others = Array.from({ length: 16 }, (_, i) =>
      engine.complete({ tokens: [1, 100 + i, 200 + 3 * i], maxTokens: 30 + i, ignoreEos: true }),
    )
    const results = await Promise.all(CASES.map((expected) => engine.complete(requestOf(expected))))
    await Promise.all(others)
    expect(greedyOf(results)).toEqual(EXPECTED_TOKENS)
  })

  it('seeded samples do not depend on the batch', async () => {
    const request: GenerateRequest = {
      tokens: STORY.prompt_ids,
      maxTokens: 40,
      temperature: 1,
      topP: 0.95,
      seed: 1234,
    }
    const alone = await engine.complete(request)
    const [together, other] = await Promise.all([
      engine.complete(request),
      engine.complete({ ...request, seed: 99 }),
      ...CASES.map((expected) => engine.complete(requestOf(expected))),
    ])
    expect(together.tokens).toEqual(alone.tokens)
    expect(other.tokens).not.toEqual(alone.tokens)
  })

  it('ends before a stop string that crosses token borders', async () => {
    const stop = 'na had a br'
    const result = await engine.complete({ ...requestOf(STORY), stop })
    expect(result.text).toBe(STORY.text.slice(0, STORY.text.indexOf(stop)))
    expect(result.stopReason).toBe(stop)
  })

  it('obeys biases, penalties and minTokens', async () => {
    const biased = await engine.complete({
      ...requestOf(STORY),
      maxTokens: 3,
      logitBias: { 500: 100 },
    })
    expect(biased.tokens).toEqual([500, 500, 500])
    const penalised = await engine.complete({
      ...requestOf(STORY),
      maxTokens: 60,
      presencePenalty: 100,
      ignoreEos: true,
    })
    expect(new Set(penalised.tokens).size).toBe(60)
    const end = STORY.greedy_ids.length
    const longer = await engine.complete({ ...requestOf(STORY), minTokens: end + 5 })
    expect(longer.tokens.slice(0, end - 1)).toEqual(STORY.greedy_ids.slice(0, -1))
    expect(longer.tokens.length).toBeGreaterThan(end + 5)
  })

  it('frees everything when a stream is left and when a prompt is aborted', async () => {
    let chunks = 0
    for await (const _ of engine.generate({ tokens: STORY.prompt_ids, ignoreEos: true }))
      if (++chunks === 5) break
    const controller = new AbortController()
    const long = Array.from({ length: 1900 }, (_, i) => 10 + (i % 1000))
    const code = codeOf(
      engine.complete({ tokens: long, signal: controller.signal, onQueued: abortSoon }),
    )
    function abortSoon() {
      setImmediate(() => setImmediate(() => controller.abort()))
    }
    expect(await code).toBe('ERR_ABORTED')
    await quiet(engine)
  })
})

describe.each<EngineOptions>([
  { pipelineDepth: 1 },
  { nanoBatches: 2, tensorParallel: 2 },
  { nanoBatches: 4, tensorParallel: 4 },
  { maxNumBatchedTokens: 5, maxNumSeqs: 4 },
  { prefixCache: false, maxNumSeqs: 3 },
])('%o', (options) => {
  it('gives the expected tokens', async () => {
    await withEngine(options, async (engine) => {
      const results = await Promise.all(
        CASES.map((expected) => engine.complete(requestOf(expected))),
      )
      expect(greedyOf(results)).toEqual(EXPECTED_TOKENS)
      await quiet(engine)
    })
  })
})

describe('prefix reuse', () => {
  it('gives the same output and says what was reused', async () => {
    await withEngine({}, async (engine) => {
      const tools = CASES.find(({ tools }) => tools !== undefined) as ExpectedCase
      const first = await engine.complete(requestOf(tools))
      const second = await engine.complete(requestOf(tools))
      expect(greedyOf([first, second])).toEqual([tools.greedy_ids, tools.greedy_ids])
      expect(first.usage.cachedTokens).toBe(0)
      expect(second.usage.cachedTokens).toBe(16 * Math.floor((tools.prompt_ids.length - 1) / 16))
      await quiet(engine)
    })
  })
})

describe('a small KV cache', () => {
  it('preempts, and the answers stay right', async () => {
    const options = { maxModelLen: 160, tensorParallel: 2 }
    const blockBytes = await withEngine(
      options,
      async ({ info }) => info.kvCacheBytes / info.kvBlocks,
    )
    await withEngine({ ...options, kvCacheBytes: 14 * blockBytes }, async (engine) => {
      // Short outputs first, so that the scheduler expects short outputs and overcommits.
      for (let i = 0; i < 40; i++) await engine.complete({ tokens: [1, 50 + i], maxTokens: 1 })
      const stories = [0, 1, 2, 0, 1, 2]
      const results = await Promise.all(
        stories.map((i) => engine.complete({ ...requestOf(CASES[i]), maxTokens: 130 })),
      )
      expect(greedyOf(results)).toEqual(stories.map((i) => CASES[i].greedy_ids))
      expect(engine.stats().preemptions).toBeGreaterThan(0)
      await quiet(engine)
    })
  })

  it('refuses what can never fit', async () => {
    await withEngine({ maxModelLen: 64 }, async (engine) => {
      expect(await codeOf(engine.complete({ prompt: 'Hello', maxTokens: 64 }))).toBe(
        'ERR_CONTEXT_LENGTH',
      )
    })
  })
})

describe('deterministic', () => {
  it('gives the same bits alone and among others', async () => {
    await withEngine({ deterministic: true, tensorParallel: 2 }, async (engine) => {
      const request: GenerateRequest = { ...requestOf(STORY), maxTokens: 40, topLogprobs: 5 }
      const alone = await engine.complete({ ...request, cacheSalt: 'alone' })
      const [together] = await Promise.all([
        engine.complete({ ...request, cacheSalt: 'together' }),
        ...CASES.map((expected) => engine.complete(requestOf(expected))),
      ])
      expect(together.tokens).toEqual(alone.tokens)
      expect(together.logprobs).toEqual(alone.logprobs)
    })
  })
})

describe('close', () => {
  it('in flight fails what is pending and can be called twice', async () => {
    const engine = await Engine.load(FOLDER, { tensorParallel: 2, precision: 'f32' })
    const codes = Promise.all([
      codeOf(engine.complete({ tokens: STORY.prompt_ids, ignoreEos: true })),
      codeOf(engine.forward(Array.from({ length: 1500 }, (_, i) => 10 + (i % 1000)))),
    ])
    await new Promise((resolve) => setTimeout(resolve, 20))
    await Promise.all([engine.close(), engine.close()])
    expect(await codes).toEqual(['ERR_CLOSED', 'ERR_CLOSED'])
    expect(await codeOf(engine.complete({ prompt: 'Hello' }))).toBe('ERR_CLOSED')
  })

  it('two engines live side by side', async () => {
    await withEngine({}, (first) =>
      withEngine({ tensorParallel: 2 }, async (second) => {
        const results = await Promise.all(
          [first, second].map((engine) => engine.complete(requestOf(STORY))),
        )
        expect(greedyOf(results)).toEqual([STORY.greedy_ids, STORY.greedy_ids])
      }),
    )
  })
})

describe('load', () => {
  it.each<[string, string, EngineOptions]>([
    ['a folder that is not there', 'ERR_MODEL_NOT_FOUND', {}],
    ['an unknown device', 'ERR_NO_DEVICE', { devices: ['cuda:77'] }],
    ['a degree that does not divide the heads', 'ERR_UNSUPPORTED_LAYOUT', { tensorParallel: 3 }],
  ])('refuses %s', async (what, code, options) => {
    const folder = what.startsWith('a folder') ? `${FOLDER}-missing` : FOLDER
    expect(await codeOf(Engine.load(folder, options))).toBe(code)
  })

  it('reports progress and can be cancelled', async () => {
    const seen: number[] = []
    await withEngine(
      { onProgress: ({ bytesDone, bytesTotal }) => seen.push(bytesDone / bytesTotal) },
      async () => {},
    )
    expect(seen.at(-1)).toBe(1)
    expect(seen.every((part, i) => i === 0 || part >= seen[i - 1])).toBe(true)
    expect(await codeOf(Engine.load(FOLDER, { signal: AbortSignal.abort() }))).toBe('ERR_ABORTED')
  })
})
