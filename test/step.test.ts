/** The step encoding: constants equal to the native mirror, and what the encoder writes. */

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  createSlotUpdates,
  decodeResult,
  RESULT_SECTION,
  ROW_FLAG,
  SLOT_PARAM_WORDS,
  STEP_HEADER_WORDS,
  STEP_SECTION,
  STEP_SECTION_WORDS,
  STEP_VERSION,
  StepEncoder,
  topLogprobsOfRow,
} from '../lib/engine/step.ts'
import { evenParts } from '../lib/engine/step-programs.ts'
import { wordOfFloat } from '../lib/engine/words.ts'
import type { EngineError } from '../lib/errors.ts'
import { createPlan, type StepPlan } from '../lib/scheduler/plan.ts'
import { createSequence, type SequenceKind } from '../lib/scheduler/sequence.ts'

const header = readFileSync(new URL('../native/program/step.h', import.meta.url), 'utf8')

function constant(name: string): number {
  const found = new RegExp(`${name}\\s*=\\s*(\\d+)`).exec(header)
  if (found === null) throw new Error(`step.h has no ${name}`)
  return Number(found[1])
}

function enumeration(name: string): Record<string, number> {
  const body = new RegExp(`enum class ${name}[^{]*{([^}]*)}`).exec(header)?.[1] ?? ''
  const entries = [...body.matchAll(/k(\w+)\s*=\s*(\d+)/g)]
  return Object.fromEntries(
    entries.map(([, key, value]) => [key[0].toLowerCase() + key.slice(1), Number(value)]),
  )
}

describe('constants', () => {
  it('are those of native/program/step.h', () => {
    expect(STEP_VERSION).toBe(constant('kStepVersion'))
    expect(STEP_HEADER_WORDS).toBe(constant('kStepHeaderWords'))
    expect(STEP_SECTION_WORDS).toBe(constant('kStepSectionWords'))
    expect(SLOT_PARAM_WORDS).toBe(constant('kSlotParamWords'))
    expect(ROW_FLAG).toEqual({
      sample: constant('kRowSample'),
      logits: constant('kRowLogits'),
      logprob: constant('kRowLogprob'),
    })
    expect(constant('kRowTopShift')).toBe(8)
    expect(STEP_SECTION).toEqual(enumeration('StepSection'))
    expect(RESULT_SECTION).toEqual(enumeration('ResultSection'))
  })
})

interface Entry {
  readonly kind?: SequenceKind
  readonly prompt: number[]
  readonly confirmed?: number[]
  readonly start: number
  readonly count: number
  readonly blocks: number[]
  readonly slot: number
  readonly rows: number
  readonly samples: boolean
  readonly rowFlags?: number
}

function planOf(entries: Entry[]): StepPlan {
  const plan = createPlan(8)
  plan.id = 7
  for (const [i, entry] of entries.entries()) {
    const sequence = createSequence({
      id: i,
      kind: entry.kind ?? 'generate',
      prompt: [...entry.prompt, ...(entry.confirmed ?? [])],
      maxTokens: 10,
      arrivalMs: 0,
      cacheRoot: new Int32Array(4),
      readsCache: true,
      rowFlags: entry.rowFlags ?? 0,
    })
    sequence.blocks = Int32Array.from(entry.blocks)
    sequence.numBlocks = entry.blocks.length
    sequence.slot = entry.slot
    plan.seqs[i] = sequence
    plan.starts[i] = entry.start
    plan.counts[i] = entry.count
    plan.firstRows[i] = plan.numRows
    plan.rowCounts[i] = entry.rows
    plan.samples[i] = entry.samples ? 1 : 0
    plan.numSeqs++
    plan.numTokens += entry.count
    plan.numRows += entry.rows
  }
  return plan
}

function sectionsOf(words: Int32Array): Record<string, number[]> {
  const names = Object.fromEntries(Object.entries(STEP_SECTION).map(([name, kind]) => [kind, name]))
  const sections: Record<string, number[]> = {}
  for (let i = 0; i < words[4]; i++) {
    const [kind, group, offset, length] = words.subarray(5 + 4 * i, 9 + 4 * i)
    expect(group).toBe(0)
    sections[names[kind]] = [...words.subarray(offset, offset + length)]
  }
  return sections
}

const MIXED: Entry[] = [
  // Decodes a token nobody has seen yet: position 4, of which 4 are known.
  {
    prompt: [11, 12, 13, 14],
    start: 4,
    count: 1,
    blocks: [9, 2],
    slot: 3,
    rows: 1,
    samples: true,
    rowFlags: ROW_FLAG.logprob | (5 << 8),
  },
  // The middle of a prompt.
  {
    prompt: [21, 22, 23, 24, 25, 26],
    start: 2,
    count: 3,
    blocks: [5, 0],
    slot: 1,
    rows: 0,
    samples: false,
  },
  {
    kind: 'score',
    prompt: [31, 32, 33, 34],
    start: 1,
    count: 2,
    blocks: [7],
    slot: -1,
    rows: 2,
    samples: false,
    rowFlags: ROW_FLAG.logprob,
  },
]

describe('StepEncoder', () => {
  it('writes tokens, positions, KV slots, sequences and rows', () => {
    const encoder = new StepEncoder({ blockSize: 4, numBuffers: 2 })
    const words = encoder.encode(planOf(MIXED), createSlotUpdates(), evenParts(2))
    expect([...words.subarray(0, 4)]).toEqual([STEP_VERSION, 7, 0, 0])
    expect(sectionsOf(words)).toEqual({
      partBounds: [0, 3, 6],
      tokens: [-4, 23, 24, 25, 32, 33],
      positions: [4, 2, 3, 4, 1, 2],
      kvSlots: [8, 22, 23, 0, 29, 30],
      seqStarts: [0, 1, 4, 6],
      seqLens: [5, 5, 3],
      blockTables: [9, 2, 5, 0, 7, -1],
      rows: [
        ...[0, 3, -1, ROW_FLAG.sample | ROW_FLAG.logprob | (5 << 8)],
        ...[4, -1, 33, ROW_FLAG.logprob],
        ...[5, -1, 34, ROW_FLAG.logprob],
      ],
    })
  })

  it('appends slot updates where there are any', () => {
    const encoder = new StepEncoder({ blockSize: 4, numBuffers: 2 })
    const updates = createSlotUpdates()
    updates.params.push(3)
    updates.bias.push(3)
    updates.bias.push(0)
    const { slotParams, slotBias, slotHistory } = sectionsOf(
      encoder.encode(planOf(MIXED), updates, evenParts(1)),
    )
    expect([slotParams, slotBias, slotHistory]).toEqual([[3], [3, 0], undefined])
  })

  it('leaves the words of the steps in flight alone', () => {
    const encoder = new StepEncoder({ blockSize: 4, numBuffers: 3 })
    const first = encoder.encode(planOf(MIXED), createSlotUpdates(), evenParts(1))
    const copy = first.slice()
    encoder.encode(planOf(MIXED.slice(1)), createSlotUpdates(), evenParts(1))
    encoder.encode(planOf(MIXED.slice(2)), createSlotUpdates(), evenParts(1))
    expect(first).toEqual(copy)
  })

  it('grows with the step', () => {
    const encoder = new StepEncoder({ blockSize: 4, numBuffers: 2 })
    const prompt = Array.from({ length: 2000 }, (_, i) => i)
    const blocks = Array.from({ length: 500 }, (_, i) => i)
    const entry = { prompt, start: 0, count: 2000, blocks, slot: 0, rows: 1, samples: true }
    expect(
      sectionsOf(encoder.encode(planOf([entry]), createSlotUpdates(), evenParts(1))).tokens,
    ).toEqual(prompt)
  })

  it.each([
    [6, 4, [0, 2, 4, 6, 6]],
    [2, 4, [0, 1, 2, 2, 2]],
    [7, 2, [0, 4, 7]],
    [5, 1, [0, 5]],
  ])('splits %i tokens in %i parts', (numTokens, parts, bounds) => {
    expect(bounds.map((_, i) => evenParts(parts).bound(numTokens, i))).toEqual(bounds)
  })
})

function resultOf(sections: [kind: number, body: number[], group?: number][]): Int32Array {
  const words = [STEP_VERSION, 7, 0, 0, sections.length]
  let offset = words.length + 4 * sections.length
  for (const [kind, body, group = 0] of sections) {
    words.push(kind, group, offset, body.length)
    offset += body.length
  }
  return Int32Array.from([...words, ...sections.flatMap(([, body]) => body)])
}

describe('decodeResult', () => {
  const sampled: [number, number[]] = [RESULT_SECTION.sampled, [5, -1]]
  const logprobs: [number, number[]] = [RESULT_SECTION.logprobs, [wordOfFloat(-0.5), 0]]

  it('reads every section of its group', () => {
    const result = decodeResult(
      resultOf([
        sampled,
        [RESULT_SECTION.sampled, [1, 2, 3], 1],
        logprobs,
        [RESULT_SECTION.topLogprobs, [0, 0, 1, 2, 8, wordOfFloat(-1), 9, wordOfFloat(-2)]],
        [RESULT_SECTION.logits, [1, 42]],
        [RESULT_SECTION.timings, [3, 4]],
      ]),
      2,
    )
    expect([...result.sampled]).toEqual([5, -1])
    expect(result.logprobs[0]).toBe(-0.5)
    expect([...result.logits]).toEqual([1, 42])
    expect([result.queueUs, result.runUs]).toEqual([3, 4])
    expect(topLogprobsOfRow(result, 1)).toEqual([
      { token: 8, logprob: -1 },
      { token: 9, logprob: -2 },
    ])
    expect(topLogprobsOfRow(result, 0)).toEqual([])
  })

  it.each([
    ['no words', new Int32Array(0)],
    ['another version', Int32Array.of(9, 0, 0, 0, 0)],
    ['a missing section', resultOf([logprobs])],
    ['another number of rows', resultOf([[RESULT_SECTION.sampled, [5]], logprobs])],
    ['a section beyond the end', Int32Array.of(STEP_VERSION, 0, 0, 0, 1, 1, 0, 9, 5)],
    ['a cut table', Int32Array.of(STEP_VERSION, 0, 0, 0, 3)],
  ])('refuses %s', (_, words) => {
    let code = 'none'
    try {
      decodeResult(words, 2)
    } catch (error) {
      code = (error as EngineError).code
    }
    expect(code).toBe('ERR_INTERNAL')
  })
})
