/** sample against the reference: tokens, penalties over steps, log-probabilities, rows of logits. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ROW_FLAG, STEP_SECTION } from '../../lib/engine/step.ts'
import { toEngineError } from '../../lib/native/load.ts'
import { embed } from '../../lib/ops/embed.ts'
import { sample } from '../../lib/ops/sample.ts'
import {
  encodeStep,
  floatsOf,
  OpRuntime,
  placeApart,
  usableIsas,
  wordsOf,
} from '../support/native.ts'
import { createRandom } from '../support/random.ts'
import { builderFor, randomValues } from './op-case.ts'
import { type SampleRow, Sampler } from './sampler.ts'
import {
  FRESH,
  logSumExp,
  philox4x32,
  type SamplingParams,
  type SlotMemory,
  sampleReference,
} from './sampling-reference.ts'
import { expectAgree, expectClose, expectExact } from './tolerance.ts'

/** A prime: no vector width divides it. */
const VOCAB = 509
const COLUMNS = 512
const ROWS = 40
/** Nearer to the next token's interval than this, rounding may choose either. */
const CLOSE_CALL = 1e-5

test('the reference generator is Philox4x32-10', () => {
  // Known answers published with Random123.
  expect(philox4x32([0, 0, 0, 0], [0, 0])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8])
  const ones = 0xffffffff
  expect(philox4x32([ones, ones, ones, ones], [ones, ones])).toEqual([
    0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd,
  ])
})

function logitsRow(seed: number, scale = 2): Float64Array {
  const row = new Float64Array(COLUMNS).fill(Infinity) // beyond the vocabulary: never looked at
  row.set(randomValues(seed, VOCAB, 'f32', scale))
  return row
}

describe.each(usableIsas())('%s', (cpuIsa) => {
  let sampler: Sampler
  beforeAll(async () => {
    sampler = await Sampler.open({
      vocabSize: VOCAB,
      columns: COLUMNS,
      maxRows: ROWS,
      cpuIsa,
      threadsPerRank: 3,
    })
  })
  afterAll(() => sampler.close())

  test('greedy takes the largest logit, ties to the lower id', async () => {
    const special = (...entries: [number, number][]) => {
      const row = logitsRow(1)
      for (const [token, value] of entries) row[token] = value
      return row
    }
    const rows = [
      special([300, 50]),
      special([VOCAB - 1, 50]),
      special([40, 50], [7, 50], [400, 50]),
      special([0, Number.NaN], [3, 60]),
      special([9, Infinity], [8, 1e30]),
      new Float64Array(COLUMNS).fill(-Infinity),
      new Float64Array(COLUMNS).fill(Number.NaN),
    ]
    const params = new Map(rows.map((_, slot) => [slot, {}]))
    const result = await sampler.run(
      rows.map((logits, slot) => ({ logits, slot, flags: ROW_FLAG.sample })),
      { params },
    )
    expectExact(result.sampled, [300, VOCAB - 1, 7, 3, 9, 0, 0])
  })

  test.each<[string, SamplingParams]>([
    ['temperature alone', { temperature: 0.8 }],
    ['a low temperature', { temperature: 0.05 }],
    ['a high temperature', { temperature: 50 }],
    ['top-k 1', { temperature: 1, topK: 1 }],
    ['top-k', { temperature: 1.5, topK: 20 }],
    ['top-k as large as the vocabulary', { temperature: 1, topK: VOCAB }],
    ['top-p', { temperature: 1, topP: 0.9 }],
    ['a tiny top-p', { temperature: 1, topP: 1e-6 }],
    ['top-p on a flat row', { temperature: 40, topP: 0.7 }],
    ['min-p', { temperature: 1, minP: 0.1 }],
    ['min-p 1', { temperature: 1, minP: 1 }],
    ['all cuts', { temperature: 1.2, topK: 50, topP: 0.8, minP: 0.05 }],
  ])('draws as the reference does: %s', async (_, options) => {
    let closeCalls = 0
    for (let round = 0; round < 5; round++) {
      const rows: SampleRow[] = []
      const params = new Map<number, SamplingParams>()
      const expected: number[] = []
      const margins: number[] = []
      for (let slot = 0; slot < ROWS; slot++) {
        const seed = (BigInt(slot) << 40n) | BigInt(round * 977 + slot)
        const [position, logits] = [round * 1000 + slot, logitsRow(slot)]
        rows.push({ logits, slot, position, flags: ROW_FLAG.sample })
        params.set(slot, { ...options, seed })
        const own = logits.subarray(0, VOCAB)
        const { token, margin } = sampleReference(own, { ...options, seed }, FRESH, position)
        expected.push(token)
        margins.push(margin)
      }
      const { sampled } = await sampler.run(rows, { params })
      expected.forEach((token, slot) => {
        if (margins[slot]! < CLOSE_CALL) closeCalls++
        else expect(sampled[slot], `slot ${slot}, round ${round}`).toBe(token)
      })
    }
    expect(closeCalls).toBeLessThan(5)
  })

  test('extreme logits draw without NaN', async () => {
    const rows = [
      new Float64Array(COLUMNS).fill(-Infinity),
      new Float64Array(COLUMNS).fill(Number.NaN),
      new Float64Array(COLUMNS).fill(-3e38),
      logitsRow(1).map((value, token) => (token === 77 ? Infinity : value)),
      logitsRow(1).map((value, token) => (token === 78 ? value : -Infinity)),
      logitsRow(1).map((value, token) => (token === 79 ? value : Number.NaN)),
    ]
    const params = new Map<number, SamplingParams>(
      rows.map((_, slot) => [slot, { temperature: 1, topP: 0.5, topK: 400, minP: 0.01 }]),
    )
    const { sampled } = await sampler.run(
      rows.map((logits, slot) => ({ logits, slot, flags: ROW_FLAG.sample })),
      { params },
    )
    expectExact([sampled[0]!, sampled[1]!], [0, 0])
    expect(sampled[2]).toBeGreaterThanOrEqual(0)
    expect(sampled[2]).toBeLessThan(VOCAB)
    expectExact([...sampled].slice(3, 6), [77, 78, 79])
  })

  test('ties with the k-th logit are kept, and top-p prefers lower ids', async () => {
    const row = new Float64Array(COLUMNS)
    row.fill(0, 0, 10)
    row.fill(-30, 10)
    const draw = async (options: SamplingParams) => {
      const seen = new Set<number>()
      for (let round = 0; round < 5; round++) {
        const { sampled } = await sampler.run(
          Array.from({ length: ROWS }, (_, slot) => ({
            logits: row,
            slot,
            position: round,
            flags: ROW_FLAG.sample,
          })),
          {
            params: new Map(
              Array.from({ length: ROWS }, (_, slot) => [slot, { ...options, seed: BigInt(slot) }]),
            ),
          },
        )
        for (const token of sampled) seen.add(token)
      }
      return [...seen].sort((a, b) => a - b)
    }
    expect(await draw({ temperature: 1, topK: 3 })).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    expect(await draw({ temperature: 1, topP: 0.35 })).toEqual([0, 1, 2, 3])
  })

  test('penalties and bias act on what a slot has seen', async () => {
    const options: SamplingParams = {
      temperature: 0.7,
      seed: 5n,
      repetition: 1.3,
      presence: 0.4,
      frequency: 0.2,
    }
    const prompt = [3, 3, 17, 200]
    const bias = new Map([
      [5, 4],
      [6, -Infinity],
      [17, 2.5],
    ])
    const logits = logitsRow(11, 1)
    logits[6] = 30 // forbidden by its bias
    const output: number[] = []
    for (let position = 0; position < 60; position++) {
      const memory: SlotMemory = { prompt, output, bias }
      const { token, margin } = sampleReference(
        logits.subarray(0, VOCAB),
        options,
        memory,
        position,
      )
      const changes =
        position === 0
          ? {
              params: new Map([[2, options]]),
              history: new Map([[2, prompt]]),
              bias: new Map([[2, bias]]),
            }
          : {}
      const row = { logits, slot: 2, position, flags: ROW_FLAG.sample }
      const { sampled } = await sampler.run([row], changes)
      if (margin >= CLOSE_CALL) expect(sampled[0], `position ${position}`).toBe(token)
      output.push(sampled[0]!)
    }
    // The parameters sent again: counts and bias start anew.
    const again = await sampler.run([{ logits, slot: 2, flags: ROW_FLAG.sample }], {
      params: new Map([[2, { ...options, temperature: 0 }]]),
    })
    expectExact(again.sampled, [6])
  })

  test('biases of one token add up', async () => {
    const logits = logitsRow(12)
    const best = { logits, slot: 0, flags: ROW_FLAG.sample }
    const change = (value: number) => new Map([[0, new Map([[33, value]])]])
    const plain = await sampler.run([best], { params: new Map([[0, {}]]) })
    const raised = await sampler.run([best], { bias: change(64) })
    const lowered = await sampler.run([best], { bias: change(-64) })
    expectExact(raised.sampled, [33])
    expectExact(lowered.sampled, plain.sampled)
  })

  test.each([
    {},
    { temperature: 1.5 },
    { temperature: 1, topK: 3 },
    { temperature: 3, topP: 0.7 },
    { temperature: 1, minP: 0.3, repetition: 1.4 },
  ])('draws from the tokens that are allowed only: %j', async (options) => {
    const random = createRandom(5)
    const allowedRows = Array.from({ length: ROWS }, (_, row) => {
      const count = [1, 2, 31, 200][row % 4]!
      return [...new Set(Array.from({ length: count }, () => random.int(0, VOCAB - 1)))]
    })
    const rows = allowedRows.map((_, slot) => ({
      logits: logitsRow(slot, 5),
      slot,
      position: 7,
      flags: ROW_FLAG.sample,
    }))
    const params = new Map(rows.map(({ slot }) => [slot, { ...options, seed: BigInt(slot) }]))
    const { sampled } = await sampler.run(rows, {
      params,
      allowed: new Map(allowedRows.map((tokens, slot) => [slot, tokens])),
    })
    rows.forEach(({ logits, slot, position }) => {
      const masked = logits.map((logit, token) =>
        allowedRows[slot]!.includes(token) ? logit : -Infinity,
      )
      const { token, margin } = sampleReference(
        masked.subarray(0, VOCAB),
        params.get(slot)!,
        FRESH,
        position,
      )
      expect(allowedRows[slot]).toContain(sampled[slot])
      if (margin >= CLOSE_CALL) expect(sampled[slot], `slot ${slot}`).toBe(token)
    })
  })

  test('a mask stays until it is replaced, taken back, or the slot is set anew', async () => {
    const row = { logits: logitsRow(4), slot: 1, flags: ROW_FLAG.sample }
    const only = (token: number) => ({ allowed: new Map([[1, [token]]]) })
    const plain = await sampler.run([row], { params: new Map([[1, {}]]) })
    const best = plain.sampled[0]!
    const other = (best + 1) % VOCAB
    const last = VOCAB - 1 === best ? 0 : VOCAB - 1
    const tokens = []
    for (const changes of [
      only(other),
      {},
      only(last),
      { allowed: new Map([[1, undefined]]) },
      only(other),
      { params: new Map([[1, {}]]) },
      { allowed: new Map([[1, []]]) },
    ])
      tokens.push((await sampler.run([row], changes)).sampled[0])
    expect(tokens).toEqual([other, other, last, best, other, best, 0])
  })

  test('log-probabilities are of the logits as given', async () => {
    const random = createRandom(9)
    const rows: SampleRow[] = Array.from({ length: 12 }, (_, row) => {
      const target = row % 3 === 0 ? random.int(0, VOCAB - 1) : -1
      const sampling = target < 0 ? { slot: row } : { target }
      const flag = target < 0 ? ROW_FLAG.sample : 0
      return { logits: logitsRow(row), ...sampling, flags: flag | ROW_FLAG.logprob | (5 << 8) }
    })
    rows.push({ logits: logitsRow(50), flags: 0 })
    const params = new Map(rows.map((_, slot) => [slot, { temperature: 3, repetition: 2 }]))
    const result = await sampler.run(rows, { params, bias: new Map([[1, new Map([[4, 3]])]]) })
    let at = 0
    rows.slice(0, 12).forEach((row, index) => {
      const own = Array.from(row.logits).slice(0, VOCAB)
      const total = logSumExp(own)
      const token = row.target ?? result.sampled[index]!
      expect(result.sampled[index]! >= 0).toBe(row.target === undefined)
      expectClose([result.logprobs[index]!], [own[token]! - total], 'f32')
      const best = own.map((_, id) => id).sort((a, b) => own[b]! - own[a]! || a - b)
      expectExact(result.topLogprobs.subarray(at, at + 2), [index, 5])
      const pairs = result.topLogprobs.subarray(at + 2, at + 12)
      expectExact(
        pairs.filter((_, i) => i % 2 === 0),
        best.slice(0, 5),
      )
      expectClose(
        floatsOf(pairs.filter((_, i) => i % 2 === 1)),
        best.slice(0, 5).map((id) => own[id]! - total),
        'f32',
      )
      at += 12
    })
    expect(at).toBe(result.topLogprobs.length)
    expect(result.sampled[12]).toBe(-1)
    expect(result.logprobs[12]).toBeNaN()
  })

  test('impossible tokens have log-probability −∞, and top entries stay ordered', async () => {
    const none = new Float64Array(COLUMNS).fill(-Infinity)
    const nan = logitsRow(3)
    nan[20] = Number.NaN
    const flags = ROW_FLAG.logprob | (20 << 8)
    const result = await sampler.run([
      { logits: none, target: 4, flags },
      { logits: nan, target: 20, flags },
    ])
    expectExact(result.logprobs, [-Infinity, -Infinity])
    const tokens = result.topLogprobs.subarray(2, 42).filter((_, i) => i % 2 === 0)
    expectExact(
      tokens,
      Array.from({ length: 20 }, (_, i) => i),
    )
    expectExact(result.topLogprobs.subarray(42, 44), [1, 20])
  })

  test('whole rows of logits come back unchanged', async () => {
    const rows = [
      { logits: logitsRow(1), flags: ROW_FLAG.logits },
      { logits: logitsRow(2), flags: 0 },
      { logits: logitsRow(3), flags: ROW_FLAG.logits },
    ]
    const { logits } = await sampler.run(rows)
    expect(logits.length).toBe(2 * (VOCAB + 1))
    expectExact([logits[0]!, logits[VOCAB + 1]!], [0, 2])
    expectExact(floatsOf(logits.subarray(1, VOCAB + 1)), rows[0]!.logits.subarray(0, VOCAB))
    expectExact(floatsOf(logits.subarray(VOCAB + 2)), rows[2]!.logits.subarray(0, VOCAB))
  })
})

test('a mask over a smaller vocabulary allows no token beyond it', async () => {
  const [vocabSize, slot] = [96, 1]
  const large = await Sampler.open({ vocabSize, maxRows: 2 })
  try {
    const small = await Sampler.open({ vocabSize: 20, maxRows: 2 }, large)
    const row = (size: number, best: number) => ({
      logits: new Float64Array(size).fill(0, 0, best).fill(5, best, best + 1),
      slot,
      flags: ROW_FLAG.sample,
    })
    const all = Array.from({ length: vocabSize }, (_, token) => token)
    const before = await large.run([row(vocabSize, 70)], {
      params: new Map([[slot, {}]]),
      allowed: new Map([[slot, all]]),
    })
    await small.run([row(20, 5)], { allowed: new Map([[slot, [3]]]) })
    const after = await large.run([row(vocabSize, 70)])
    expectExact(before.sampled, [70])
    expectExact(after.sampled, [3])
  } finally {
    await large.close()
  }
})

test('every rank samples the same tokens, only the first reports', async () => {
  const sampler = await Sampler.open({ vocabSize: VOCAB, maxRows: 8, world: 4 })
  try {
    const rows = Array.from({ length: 8 }, (_, slot) => ({
      logits: randomValues(slot, VOCAB, 'f32', 1),
      slot,
      position: slot,
      flags: ROW_FLAG.sample,
    }))
    const params = new Map(rows.map(({ slot }) => [slot, { temperature: 1, seed: BigInt(slot) }]))
    const result = await sampler.run(rows, { params })
    expect(result.sampled.length).toBe(8)
    const tokens = []
    for (let rank = 0; rank < 4; rank++) {
      tokens.push((await sampler.runtime.readBytes('tokens', rank)).subarray(0, 32))
    }
    expectAgree(tokens)
    expectAgree([tokens[0]!, new Uint8Array(result.sampled.buffer)])
  } finally {
    await sampler.close()
  }
})

test('a later step takes a sampled token from its slot', async () => {
  const [vocab, hidden] = [24, 8]
  const builder = builderFor(2, 1, { vocabSize: vocab })
  const table = builder.weight('table', 'f32', [vocab, hidden], 'matmul')
  const x = builder.arena('x', 'f32', ['T', hidden])
  const logits = builder.arena('logits', 'f32', ['R', vocab])
  const tokens = builder.arena('tokens', 'i32', ['R'])
  builder.add('embed', embed({ table, x }))
  builder.add('sample', sample({ logits, tokens }, { vocab_size: vocab }))
  const weights = randomValues(1, vocab * hidden)
  const runtime = await OpRuntime.open(placeApart(builder), { weights: { table: [weights] } })
  try {
    const row = new Float64Array(vocab)
    row[13] = 1
    await runtime.write('logits', 0, row)
    const step = (token: number, more: [number, number[]][]) =>
      encodeStep(
        new Map<number, number[]>([
          [STEP_SECTION.partBounds, [0, 1]],
          [STEP_SECTION.tokens, [token]],
          [STEP_SECTION.positions, [0]],
          ...more,
        ]),
      )
    const slot = 5
    const params = [slot, 0, 0, ...wordsOf(0), 0, ...wordsOf(1, 0, 1, 0, 0), 0, 0]
    await runtime.submit(
      step(0, [
        [STEP_SECTION.slotParams, params],
        [STEP_SECTION.rows, [0, slot, -1, ROW_FLAG.sample]],
      ]),
    )
    await runtime.submit(step(-(slot + 1), []))
    const seen = await runtime.read('x', 0)
    expectExact(seen.subarray(0, hidden), weights.subarray(13 * hidden, 14 * hidden))
  } finally {
    await runtime.close()
  }
})

test.each([
  ['samples twice', 2, VOCAB],
  ['has a smaller vocabulary', 1, VOCAB - 1],
])('a program that %s is refused', async (_, count, vocabSize) => {
  const builder = builderFor(4, 1, { vocabSize, numSlots: 4 })
  const logits = builder.arena('logits', 'f32', ['R', VOCAB])
  for (let i = 0; i < count; i++) {
    const tokens = builder.arena(`tokens${i}`, 'i32', ['R'])
    builder.add(`op${i}`, sample({ logits, tokens }, { vocab_size: VOCAB }))
  }
  const opened = OpRuntime.open(placeApart(builder), {}).catch((error) => toEngineError(error).code)
  expect(await opened).toBe('ERR_PROGRAM')
})

/** So near 1 that rounding can leave the sum of all candidates short of what top-p asks for. */
test.each([
  [512, 0.9999999],
  [512, 0.99999994],
  [32_000, 0.9999999],
  [32_000, 0.99999994],
])(
  '2,048 rows of %i logits with top-p %f',
  async (vocabSize, topP) => {
    const maxRows = 64
    const sampler = await Sampler.open({ vocabSize, maxRows, threadsPerRank: 2 })
    const logits = Array.from({ length: 8 }, (_, seed) => gaussianRow(seed, vocabSize))
    const outside: number[] = []
    for (let round = 0; round < 32; round++) {
      const rows: SampleRow[] = []
      const params = new Map<number, SamplingParams>()
      for (let slot = 0; slot < maxRows; slot++) {
        const row = round * maxRows + slot
        rows.push({ logits: logits[slot % 8]!, slot, position: row, flags: ROW_FLAG.sample })
        params.set(slot, { temperature: 0.5 + row / 1000, topP, seed: BigInt(row) })
      }
      const { sampled } = await sampler.run(rows, { params })
      outside.push(...[...sampled].filter((token) => token < 0 || token >= vocabSize))
    }
    expect(outside).toEqual([])
    await sampler.close()
  },
  60_000,
)

function gaussianRow(seed: number, size: number): Float64Array {
  const random = createRandom(seed)
  const uniform = () => random.int(1, 1 << 24) / (1 << 24)
  return Float64Array.from(
    { length: size },
    () => 2 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  )
}
