/** Sampling options, generation_config.json, slot state, stop strings. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { readGenerationDefaults } from '../lib/engine/generation-config.ts'
import { GenerateOutput } from '../lib/engine/output.ts'
import {
  resolveSampling,
  type SamplingContext,
  samplingRowFlags,
  writeSlotState,
  writeStopsAllowed,
} from '../lib/engine/sampling.ts'
import { createSlotUpdates, ROW_FLAG, SLOT_PARAM_WORDS } from '../lib/engine/step.ts'
import { StopMatcher } from '../lib/engine/stop-strings.ts'
import type { SamplingOptions } from '../lib/engine/types.ts'
import { floatOfWord } from '../lib/engine/words.ts'
import type { EngineError } from '../lib/errors.ts'
import { createRandom } from './support/random.ts'

const context: SamplingContext = {
  defaults: {},
  eosTokenIds: [2, 5],
  vocabSize: 100,
  room: 50,
  randomSeed: () => 77n,
}

const codeOf = (run: () => unknown): string => {
  try {
    run()
  } catch (error) {
    return (error as EngineError).code
  }
  return 'none'
}

describe('resolveSampling', () => {
  it('is greedy to the end of the context when nothing is said', () => {
    const sampling = resolveSampling({}, context)
    expect(sampling).toMatchObject({
      temperature: 0,
      maxTokens: 50,
      minTokens: 0,
      seed: 77n,
      topP: 1,
    })
    expect([...sampling.stopTokens]).toEqual([2, 5])
    expect(samplingRowFlags(sampling)).toBe(0)
  })

  it('takes what is not said from the model, and lets the request win', () => {
    const defaults = {
      temperature: 0.6,
      topP: 0.9,
      topK: 20,
      repetitionPenalty: 1.1,
      maxTokens: 30,
    }
    expect(resolveSampling({}, { ...context, defaults })).toMatchObject(defaults)
    expect(
      resolveSampling(
        { temperature: 0, topP: 1, topK: 0, maxTokens: 60 },
        { ...context, defaults },
      ),
    ).toMatchObject({ temperature: 0, topP: 1, topK: 0, maxTokens: 60 })
    expect(resolveSampling({}, { ...context, defaults, room: 7 }).maxTokens).toBe(7)
  })

  it('samples when asked to narrow a distribution', () => {
    expect(resolveSampling({ topP: 0.5 }, context).temperature).toBe(1)
    expect(resolveSampling({ topP: 0.5, temperature: 0 }, context).temperature).toBe(0)
    expect(resolveSampling({ temperature: 1e-9 }, context).temperature).toBe(0)
  })

  it.each<[SamplingOptions, bigint]>([
    [{ seed: 5 }, 5n],
    [{ seed: -1 }, 2n ** 64n - 1n],
    [{ seed: 2n ** 64n + 3n }, 3n],
  ])('seeds are 64-bit: %o', (options, seed) => {
    expect(resolveSampling(options, context).seed).toBe(seed)
  })

  it('collects stops', () => {
    const sampling = resolveSampling(
      { stop: ['a', 'b', 'a'], stopTokenIds: [9], ignoreEos: true, topLogprobs: 3 },
      context,
    )
    expect(sampling.stopStrings).toEqual(['a', 'b'])
    expect([...sampling.stopTokens]).toEqual([9])
    expect(samplingRowFlags(sampling)).toBe(ROW_FLAG.logprob | (3 << 8))
  })

  it.each<[string, unknown]>([
    ['maxTokens', 0],
    ['maxTokens', 1.5],
    ['maxTokens', '5'],
    ['minTokens', 51],
    ['temperature', -0.1],
    ['temperature', Number.NaN],
    ['temperature', Number.POSITIVE_INFINITY],
    ['topP', 0],
    ['topP', 1.1],
    ['topK', -1],
    ['minP', 2],
    ['repetitionPenalty', 0],
    ['presencePenalty', 1e9],
    ['frequencyPenalty', 'much'],
    ['seed', 0.5],
    ['seed', 1e300],
    ['stop', ''],
    ['stop', ['ok', 5]],
    ['stop', 'x'.repeat(1025)],
    ['stop', Array.from({ length: 65 }, (_, i) => `${i}`)],
    ['stop', '\ud83d'],
    ['stopTokenIds', [100]],
    ['stopTokenIds', 5],
    ['stopTokenIds', new Array(1025).fill(1)],
    ['logitBias', { 100: 1 }],
    ['logitBias', { '-1': 1 }],
    ['logitBias', { x: 1 }],
    ['logitBias', { 1: 101 }],
    ['logitBias', { 1: 'a' }],
    ['logitBias', new Map([[1.5, 1]])],
    ['logitBias', Object.fromEntries(Array.from({ length: 4097 }, (_, i) => [i, 0]))],
    ['logprobs', 'yes'],
    ['topLogprobs', 21],
    ['ignoreEos', 1],
  ])('refuses %s: %j', (option, value) => {
    expect(codeOf(() => resolveSampling({ [option]: value }, context))).toBe('ERR_USAGE')
  })
})

describe('slot state', () => {
  const floats = (words: Int32Array, ...at: number[]) => at.map((i) => floatOfWord(words[i]))

  it('is written once, with history only for a repetition penalty', () => {
    const updates = createSlotUpdates()
    const sampling = resolveSampling(
      {
        temperature: 0.5,
        topK: 7,
        topP: 0.75,
        minP: 0.25,
        repetitionPenalty: 1.5,
        presencePenalty: 2,
        frequencyPenalty: -1,
        seed: 0x1_ffff_fffen,
        logitBias: new Map([[4, -3]]),
      },
      context,
    )
    writeSlotState(sampling, 6, Int32Array.of(8, 9), updates)
    const params = updates.params.toArray()
    expect(params).toHaveLength(SLOT_PARAM_WORDS)
    expect([params[0], params[1], params[2], params[4]]).toEqual([6, -2, 1, 7])
    expect(floats(params, 3, 5, 6, 7, 8, 9)).toEqual([0.5, 0.75, 0.25, 1.5, 2, -1])
    expect([...updates.history.toArray()]).toEqual([6, 2, 8, 9])
    const bias = updates.bias.toArray()
    expect([bias[0], bias[1], bias[2], floatOfWord(bias[3])]).toEqual([6, 1, 4, -3])

    const plain = createSlotUpdates()
    writeSlotState(resolveSampling({}, context), 0, Int32Array.of(8), plain)
    expect([plain.params.length, plain.history.length, plain.bias.length]).toEqual([12, 0, 0])
  })

  it('bans stop tokens until minTokens; biases then add up to exactly what was asked', () => {
    const sampling = resolveSampling({ minTokens: 3, logitBias: { 2: 0.1, 7: 5 } }, context)
    const updates = createSlotUpdates()
    writeSlotState(sampling, 1, new Int32Array(0), updates)
    const total = new Map<number, number>()
    const apply = () => {
      const words = updates.bias.toArray()
      for (let at = 0; at < words.length; at += 2 + 2 * words[at + 1]) {
        expect(words[at]).toBe(1)
        for (let i = 0; i < words[at + 1]; i++) {
          const token = words[at + 2 + 2 * i]
          const added = Math.fround((total.get(token) ?? 0) + floatOfWord(words[at + 3 + 2 * i]))
          total.set(token, added)
        }
      }
      updates.bias.clear()
    }
    apply()
    expect(total.get(2)).toBeLessThan(-1e5)
    expect(total.get(5)).toBeLessThan(-1e5)
    expect(total.get(7)).toBe(5)
    writeStopsAllowed(sampling, 1, updates)
    apply()
    expect([total.get(2), total.get(5), total.get(7)]).toEqual([Math.fround(0.1), 0, 5])
  })
})

describe('generation_config.json', () => {
  const folders: string[] = []
  afterEach(() => {
    for (const folder of folders.splice(0)) rmSync(folder, { recursive: true })
  })
  const read = (text?: string) => {
    const folder = mkdtempSync(join(tmpdir(), 'nanoweave-'))
    folders.push(folder)
    if (text !== undefined) writeFileSync(join(folder, 'generation_config.json'), text)
    return readGenerationDefaults(folder)
  }

  it('may be missing', () => {
    expect(read()).toEqual({})
  })

  it('counts for sampling only with do_sample', () => {
    const values = { temperature: 0.7, top_p: 0.8, top_k: 20, min_p: 0.1, repetition_penalty: 1.05 }
    expect(read(JSON.stringify(values))).toEqual({ repetitionPenalty: 1.05 })
    expect(read(JSON.stringify({ ...values, do_sample: true, eos_token_id: 3 }))).toEqual({
      temperature: 0.7,
      topP: 0.8,
      topK: 20,
      minP: 0.1,
      repetitionPenalty: 1.05,
      eosTokenIds: [3],
    })
    expect(read('{"do_sample": true, "top_k": null}')).toEqual({ temperature: 1 })
  })

  it.each([
    '{',
    '[]',
    '{"eos_token_id": -1}',
    '{"eos_token_id": ["a"]}',
    '{"repetition_penalty": "x"}',
  ])('refuses %s', (text) => {
    expect(codeOf(() => read(text))).toBe('ERR_MODEL_CONFIG')
  })
})

describe('StopMatcher', () => {
  /** Feeds text in pieces; what comes out, and which stop. */
  const run = (stops: string[], pieces: string[]) => {
    const matcher = new StopMatcher(stops)
    let text = ''
    for (const piece of pieces) {
      const match = matcher.push(piece)
      text += match.text
      if (match.stop !== undefined) return { text, stop: match.stop }
    }
    return { text: text + matcher.finish(), stop: undefined }
  }

  it.each<[string[], string[], string, string | undefined]>([
    [[], ['abc'], 'abc', undefined],
    [['\n\n'], ['a\n', 'b\n', '\nc'], 'a\nb', '\n\n'],
    [['END'], ['xE', 'N', 'ENDy'], 'xEN', 'END'],
    [['aab'], ['aaab'], 'a', 'aab'],
    [['abcd', 'bc'], ['abcd'], 'a', 'bc'],
    [['c', 'abc'], ['xabc'], 'x', 'abc'],
    [['END'], ['xEN'], 'xEN', undefined],
  ])('%j in %j', (stops, pieces, text, stop) => {
    expect(run(stops, pieces)).toEqual({ text, stop })
  })

  it('gives the same for any grouping, and holds back no more than it must', () => {
    const random = createRandom(5)
    const word = (length: number) => Array.from({ length }, () => 'ab'[random.int(0, 1)]).join('')
    for (let round = 0; round < 3000; round++) {
      const text = word(random.int(0, 24))
      const stops = Array.from({ length: random.int(1, 3) }, () => word(random.int(1, 5)))
      // The stop that ends first; of those, the longest.
      let expected: { text: string; stop: string | undefined } = { text, stop: undefined }
      for (let end = 1; end <= text.length && expected.stop === undefined; end++) {
        const found = stops
          .filter((stop) => text.slice(0, end).endsWith(stop))
          .sort((a, b) => b.length - a.length)[0]
        if (found !== undefined) expected = { text: text.slice(0, end - found.length), stop: found }
      }
      const pieces: string[] = []
      for (let at = 0; at < text.length; ) {
        const length = random.int(1, 4)
        pieces.push(text.slice(at, at + length))
        at += length
      }
      expect(run(stops, pieces)).toEqual(expected)

      const matcher = new StopMatcher(stops)
      const first = matcher.push(pieces[0] ?? '')
      if (first.stop !== undefined) continue
      const held = (pieces[0] ?? '').slice(first.text.length)
      expect(held === '' || stops.some((stop) => stop.startsWith(held))).toBe(true)
    }
  })
})

describe('GenerateOutput', () => {
  it('ends at maxTokens with everything that was held back', () => {
    const texts = ['he', 'l', 'lo']
    const detokenizer = {
      push: (ids: readonly number[]) => ids.map((id) => texts[id]).join(''),
      finish: () => '!',
    }
    const sampling = resolveSampling({ maxTokens: 3, stop: 'lo!?', ignoreEos: true }, context)
    const output = new GenerateOutput(sampling, detokenizer, true)
    expect(output.push(0, undefined)).toEqual({ text: 'he', tokens: [0] })
    expect(output.push(1, undefined)).toEqual({ text: '', tokens: [1] })
    const last = output.push(2, undefined)
    expect(last).toMatchObject({ text: 'llo!', finishReason: 'length' })
  })

  it('shows a special stop token only when special tokens are shown', () => {
    const detokenizer = { push: () => '<eos>', finish: () => '' }
    const sampling = resolveSampling({}, context)
    expect(new GenerateOutput(sampling, detokenizer, true).push(2, undefined).text).toBe('')
    expect(new GenerateOutput(sampling, detokenizer, false).push(2, undefined)).toMatchObject({
      text: '<eos>',
      stopReason: 2,
    })
  })
})
