/**
 * Experts that move while an engine runs: the same bits as at rest, whatever the policy, and counts,
 * tables and copies that fit together.
 */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Engine, type EngineOptions } from '../lib/index.ts'
import { formatTrace, numTraceTokens, traceLoads } from '../lib/parallel/balance/trace.ts'
import { createMetrics } from '../lib/server/metrics.ts'
import { codeOf } from './support/fake-engine.ts'
import { EXPERT_FAMILIES, goldenFolder, maxDifference, readGolden } from './support/golden.ts'
import { createRandom } from './support/random.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-moe', import.meta.url))
const OPTIONS = { precision: 'f32', threads: 4, maxNumBatchedTokens: 64 } as const

const PROMPTS = Array.from({ length: 6 }, (_, index) => {
  const random = createRandom(index + 1)
  return Array.from({ length: 20 + 7 * index }, () => random.int(3, 500))
})

/** Outputs of many requests at once, then the logits of one, by their bits. */
async function run(options: EngineOptions) {
  const engine = await Engine.load(FOLDER, { ...OPTIONS, ...options })
  try {
    const outputs = await Promise.all(
      PROMPTS.map((tokens) =>
        engine.complete({ tokens, temperature: 0, maxTokens: 24, ignoreEos: true }),
      ),
    )
    const { logits } = await engine.forward(PROMPTS.at(-1)!)
    return { tokens: outputs.map(({ tokens }) => tokens), logits, stats: engine.stats() }
  } finally {
    await engine.close()
  }
}

/** A difference of arrays of this size is too long to print. */
function expectSameBits(actual: Float32Array, expected: Float32Array): void {
  const [a, b] = [actual, expected].map(({ buffer }) => new Int32Array(buffer))
  expect(a!.findIndex((word, i) => word !== b![i])).toBe(-1)
  expect(a!.length).toBe(b!.length)
}

describe.each([2, 4])('experts over %i ranks', (expertParallel) => {
  let atRest: Awaited<ReturnType<typeof run>>
  beforeAll(async () => {
    atRest = await run({ expertParallel })
  })

  it.each([
    ['eplb', 1, 1],
    ['eplb', 2, 3],
    ['least-loaded', 2, 1],
    ['count', 0, 1],
  ] as const)(
    '%s, %i extra slots, every %i steps: the same bits',
    async (policy, slots, period) => {
      const options = {
        expertParallel,
        expertSlots: slots,
        expertBalance: policy,
        expertBalancePeriod: period,
      }
      const moved = await run(options)
      expect(moved.tokens).toEqual(atRest.tokens)
      expectSameBits(moved.logits, atRest.logits)
      const { experts } = moved.stats
      expect(experts?.plans).toBeGreaterThan(5)
      if (policy === 'eplb') expect(experts?.movedSlots).toBeGreaterThan(5)
      if (policy === 'count') expect(experts?.movedSlots).toBe(0)
    },
  )

  it('counts every choice of every layer', async () => {
    const { stats } = await run({
      expertParallel,
      expertBalance: 'count',
      expertBalancePeriod: 1,
      prefixCache: false,
      pipelineDepth: 1,
    })
    const computed =
      PROMPTS.reduce((sum, { length }) => sum + length + 23, 0) + PROMPTS.at(-1)!.length
    for (const loads of stats.experts!.experts) {
      expect(loads.reduce((sum, load) => sum + load, 0)).toBe(2 * computed)
    }
  })
})

it('least-loaded moves experts while prompts are computed, and takes them home to decode', async () => {
  const random = createRandom(9)
  const prompt = Array.from({ length: 1200 }, () => random.int(3, 500))
  const generate = async (options: EngineOptions) => {
    const engine = await Engine.load(FOLDER, {
      ...OPTIONS,
      expertParallel: 4,
      maxNumBatchedTokens: 512,
      prefixCache: false,
      ...options,
    })
    try {
      await engine.forward(prompt)
      const moved = engine.stats().experts?.movedSlots
      const { tokens } = await engine.complete({
        tokens: prompt,
        temperature: 0,
        maxTokens: 40,
        ignoreEos: true,
      })
      return { tokens, moved, experts: engine.stats().experts }
    } finally {
      await engine.close()
    }
  }
  const atRest = await generate({})
  const balanced = await generate({
    expertSlots: 2,
    expertBalance: 'least-loaded',
    expertBalancePeriod: 1,
  })
  expect(balanced.tokens).toEqual(atRest.tokens)
  expect(balanced.moved).toBeGreaterThan(0)
  expect(balanced.experts?.servedAway).toEqual([0, 0, 0])
})

it('tensor-parallel slices of experts move too', async () => {
  const layout = { tensorParallel: 4, expertParallel: 2 }
  const atRest = await run(layout)
  const moved = await run({ ...layout, expertSlots: 1, expertBalancePeriod: 1 })
  expectSameBits(moved.logits, atRest.logits)
  expect(moved.stats.experts?.movedSlots).toBeGreaterThan(5)
})

describe.each(EXPERT_FAMILIES)('%s, experts on the move', (family) => {
  it.each([2, 4])('over %i ranks: the logits of the reference', async (expertParallel) => {
    const folder = goldenFolder(family)
    const prompts = readGolden(folder)
    const engine = await Engine.load(folder, {
      ...OPTIONS,
      expertParallel,
      expertSlots: 1,
      expertBalancePeriod: 1,
    })
    try {
      for (let round = 0; round < 3; round++) {
        for (const { tokens, logits: expected } of prompts) {
          const { logits, shape } = await engine.forward(tokens)
          const rows = tokens.map((_, i) => logits.subarray(i * shape[1]!, (i + 1) * shape[1]!))
          expect(maxDifference(rows, expected)).toBeLessThanOrEqual(2e-4)
        }
      }
      expect(engine.stats().experts?.movedSlots).toBeGreaterThan(0)
    } finally {
      await engine.close()
    }
  })
})

describe('placement by a trace', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'nanoweave-trace-'))
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  it('records a trace, places experts by it, and gives the same bits', async () => {
    const engine = await Engine.load(FOLDER, { ...OPTIONS, expertBalance: 'count' })
    engine.startExpertTrace()
    await engine.forward(PROMPTS[0]!)
    await engine.forward(PROMPTS[1]!)
    const trace = engine.stopExpertTrace()
    await engine.close()
    expect(numTraceTokens(trace)).toBe(PROMPTS[0]!.length + PROMPTS[1]!.length)
    for (const loads of traceLoads(trace)) {
      expect(loads.reduce((sum, load) => sum + load, 0)).toBe(2 * numTraceTokens(trace))
    }
    const file = path.join(folder, 'trace.json')
    writeFileSync(file, formatTrace(trace))
    const atRest = await run({ expertParallel: 4 })
    const placed = await run({ expertParallel: 4, expertPlacement: file })
    expectSameBits(placed.logits, atRest.logits)
    const both = await run({
      expertParallel: 4,
      expertPlacement: file,
      expertSlots: 1,
      expertBalancePeriod: 2,
    })
    expectSameBits(both.logits, atRest.logits)
    expect(both.stats.experts?.movedSlots).toBeGreaterThan(0)
  })

  it.each([
    ['no JSON', 'not JSON'],
    ['{"version":1,"layers":1,"experts":8,"choices":2,"chosen":"AAABAA=="}', 'layers'],
    ['{"version":1,"layers":4,"experts":8,"choices":2,"chosen":"AAA="}', 'bytes'],
  ])('refuses %s', async (text, why) => {
    const file = path.join(folder, 'wrong.json')
    writeFileSync(file, text)
    const load = Engine.load(FOLDER, { expertParallel: 2, expertPlacement: file })
    await expect(load).rejects.toMatchObject({
      code: 'ERR_USAGE',
      message: expect.stringContaining(why),
    })
  })

  it('refuses a file that is not there', async () => {
    const expertPlacement = path.join(folder, 'absent.json')
    await expect(Engine.load(FOLDER, { expertPlacement })).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.not.stringContaining('ENOENT'),
    })
  })
})

describe('options', () => {
  const WRONG: readonly (readonly [EngineOptions, string])[] = [
    [{ expertBalance: 'eplb' }, 'expertSlots'],
    [{ expertBalance: 'sometimes' as 'eplb' }, 'one of off'],
    [{ expertSlots: -1 }, 'expertSlots'],
    // 4 ranks of 2 + 254 slots are 1024.
    [{ expertParallel: 4, expertSlots: 255 }, 'expertSlots must be at most 254'],
    [{ expertSlots: 1, expertBalancePeriod: 0 }, 'expertBalancePeriod'],
  ]
  it.each(WRONG)('refuses %o', async (options, why) => {
    const load = Engine.load(FOLDER, { expertParallel: 2, ...options })
    await expect(load).rejects.toMatchObject({
      code: 'ERR_USAGE',
      message: expect.stringContaining(why),
    })
  })

  it('refuses a dense model', async () => {
    const dense = fileURLToPath(new URL('../models/tiny-dense', import.meta.url))
    const load = Engine.load(dense, { expertBalance: 'count' })
    expect(await codeOf(load)).toBe('ERR_UNSUPPORTED_OPTION')
  })
})

it('metrics have the loads, by groups of layers', async () => {
  const engine = await Engine.load(FOLDER, {
    ...OPTIONS,
    expertParallel: 4,
    expertSlots: 1,
    expertBalancePeriod: 1,
  })
  try {
    await engine.complete({ tokens: PROMPTS[0]!, maxTokens: 12, temperature: 0, ignoreEos: true })
    const text = await createMetrics(engine, 'tiny-moe').render()
    const { experts } = engine.stats()
    const value = (name: string) =>
      Number(
        text
          .split('\n')
          .find((line) => line.startsWith(name))
          ?.split(' ')
          .at(-1),
      )
    expect(value('nanoweave:expert_load_max_over_mean{layers="0-2"')).toBe(
      Math.max(...experts!.imbalance),
    )
    expect(value('nanoweave:expert_slots_moved_total')).toBe(experts!.movedSlots)
    expect(experts!.movedSlots).toBeGreaterThan(0)
    expect(value('nanoweave:expert_choices_total')).toBe(
      experts!.experts.flat().reduce((sum, count) => sum + count),
    )
  } finally {
    await engine.close()
  }
})
