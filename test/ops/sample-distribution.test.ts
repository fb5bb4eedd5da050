/** What many draws look like: chi-square against the probabilities, and independence of the batch. */

import { afterAll, beforeAll, expect, test } from 'vitest'
import { ROW_FLAG } from '../../lib/engine/step.ts'
import { randomValues } from './op-case.ts'
import { type SampleRow, Sampler } from './sampler.ts'
import { cutProbabilities, type SamplingParams } from './sampling-reference.ts'

const VOCAB = 61
const ROWS = 500
const DRAWS = 20_000

let sampler: Sampler
beforeAll(async () => {
  sampler = await Sampler.open({ vocabSize: VOCAB, maxRows: ROWS, threadsPerRank: 2 })
})
afterAll(() => sampler.close())

/** Counts of DRAWS tokens; seeds and positions both vary. */
async function drawCounts(logits: Float64Array, options: SamplingParams): Promise<number[]> {
  const counts = new Array<number>(VOCAB).fill(0)
  for (let round = 0; round < DRAWS / ROWS; round++) {
    const rows: SampleRow[] = []
    const params = new Map<number, SamplingParams>()
    for (let slot = 0; slot < ROWS; slot++) {
      rows.push({ logits, slot, position: round, flags: ROW_FLAG.sample })
      params.set(slot, { ...options, seed: BigInt(slot * 1_000_003) })
    }
    const { sampled } = await sampler.run(rows, { params })
    for (const token of sampled) counts[token]!++
  }
  return counts
}

/** Standard normal deviate of a chi-square statistic (Wilson and Hilferty, 1931). */
function chiSquareDeviate(counts: readonly number[], probabilities: readonly number[]): number {
  let statistic = 0
  let cells = 0
  let [rareCount, rareExpected] = [0, 0]
  counts.forEach((count, token) => {
    const expected = probabilities[token]! * DRAWS
    if (expected >= 5) {
      statistic += (count - expected) ** 2 / expected
      cells++
    } else {
      rareCount += count
      rareExpected += expected
    }
  })
  if (rareExpected > 0) {
    statistic += (rareCount - rareExpected) ** 2 / rareExpected
    cells++
  }
  const freedom = cells - 1
  const spread = 2 / (9 * freedom)
  return (Math.cbrt(statistic / freedom) - (1 - spread)) / Math.sqrt(spread)
}

test.each<[string, SamplingParams]>([
  ['temperature 1', { temperature: 1 }],
  ['temperature 0.5', { temperature: 0.5 }],
  ['top-k 10', { temperature: 1.5, topK: 10 }],
  ['top-p 0.8', { temperature: 1, topP: 0.8 }],
  ['min-p 0.05', { temperature: 1, minP: 0.05 }],
  ['all cuts', { temperature: 1.3, topK: 30, topP: 0.9, minP: 0.02 }],
])('draws follow the probabilities: %s', async (_, options) => {
  const logits = randomValues(4, VOCAB, 'f32', 1.5)
  const probabilities = cutProbabilities([...logits], options)
  const counts = await drawCounts(logits, options)
  counts.forEach((count, token) => {
    if (probabilities[token] === 0) expect(count, `token ${token} was cut`).toBe(0)
    if (probabilities[token]! > 1e-3) expect(count, `token ${token} was kept`).toBeGreaterThan(0)
  })
  // Seeds are fixed, so this passes or fails for good; 4.5 is one in 300,000.
  expect(chiSquareDeviate(counts, probabilities)).toBeLessThan(4.5)
})

test('a draw depends on seed and position, not on slot, row or batch', async () => {
  const options = { temperature: 1, topP: 0.95, seed: 1234567890123n }
  const logits = randomValues(8, VOCAB, 'f32', 1)
  const alone: number[] = []
  for (let position = 0; position < 50; position++) {
    const row = { logits, slot: 3, position, flags: ROW_FLAG.sample }
    const { sampled } = await sampler.run([row], { params: new Map([[3, options]]) })
    alone.push(sampled[0]!)
  }
  // The same 50 draws at once, in other slots, between rows of other requests.
  const rows: SampleRow[] = []
  const params = new Map<number, SamplingParams>()
  for (let position = 49; position >= 0; position--) {
    const slot = 100 + rows.length
    rows.push({ logits, slot, position, flags: ROW_FLAG.sample })
    params.set(slot, options)
    rows.push({ logits: randomValues(position, VOCAB), slot: slot + 1, flags: ROW_FLAG.sample })
    params.set(slot + 1, { temperature: 2, seed: 1n })
  }
  const { sampled } = await sampler.run(rows, { params })
  expect([...sampled].filter((_, row) => row % 2 === 0).reverse()).toEqual(alone)
  expect(new Set(alone).size).toBeGreaterThan(10)
})
