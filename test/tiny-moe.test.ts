/** The demo model with experts on the engine, against what transformers computes in float32. */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { type ChatMessage, Engine, type EngineOptions } from '../lib/index.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-moe', import.meta.url))

interface ExpectedCase {
  readonly prompt?: string
  readonly messages?: readonly ChatMessage[]
  readonly tools?: readonly unknown[]
  readonly greedy_ids: readonly number[]
  readonly text: string
}

const CASES: readonly ExpectedCase[] = JSON.parse(
  readFileSync(`${FOLDER}/expected.json`, 'utf8'),
).cases

async function run(options: EngineOptions) {
  const engine = await Engine.load(FOLDER, { precision: 'f32', threads: 4, ...options })
  try {
    const results = await Promise.all(
      CASES.map(({ prompt, messages, tools }) =>
        engine.complete({
          ...(prompt !== undefined && { prompt }),
          ...(messages !== undefined && { messages }),
          ...(tools !== undefined && { tools }),
          temperature: 0,
          maxTokens: 200,
        }),
      ),
    )
    return { info: engine.info, results }
  } finally {
    await engine.close()
  }
}

it.each([
  { expertParallel: 1 },
  { expertParallel: 4 },
  { expertParallel: 3, nanoBatches: 2 },
  { tensorParallel: 2 },
  { tensorParallel: 2, expertParallel: 4, nanoBatches: 2 },
] as const)('tells the expected stories, all at once: %o', async (options) => {
  const { results } = await run(options)
  expect(results.map(({ tokens }) => tokens)).toEqual(CASES.map(({ greedy_ids }) => greedy_ids))
  expect(results[0]?.text).toBe(CASES[0]?.text)
})

it('names the layout', async () => {
  const { info } = await run({ expertParallel: 4 })
  expect(info).toMatchObject({ world: 4, tensorParallel: 1, expertParallel: 4 })
})

it.each([
  [{ expertParallel: 9 }, 'between 1 and 8'],
  [{ tensorParallel: 2, expertParallel: 3 }, 'divide'],
])('refuses %o', async (options, reason) => {
  await expect(Engine.load(FOLDER, options)).rejects.toMatchObject({
    code: 'ERR_UNSUPPORTED_LAYOUT',
    message: expect.stringContaining(reason),
  })
})
