/**
 * Damaged programs and steps through the addon: thousands of seeded mutations of a real model's
 * program and of its steps are refused with ERR_PROGRAM or ERR_STEP, or run. Sanitizer builds do the
 * same natively (scripts/sanitize.sh).
 */

import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ROW_FLAG, SLOT_PARAM_WORDS, STEP_SECTION } from '../lib/engine/step.ts'
import { EngineError } from '../lib/errors.ts'
import { compileModel, loadModel } from '../lib/models/index.ts'
import type { CompiledModel } from '../lib/models/types.ts'
import type { NativeRuntime } from '../lib/native/binding.ts'
import { toEngineError } from '../lib/native/load.ts'
import type { Program, ProgramOp } from '../lib/program/types.ts'
import { encodeStep, wordsOf } from './support/native.ts'
import { createRandom, type Random } from './support/random.ts'
import {
  openRuntime,
  rejection,
  sumOp,
  tokensStep,
  twoBufferProgram,
} from './support/runtime-programs.ts'

type ProgramShape = Program['buffers'][number]['shape']

const LIMITS = {
  maxTokens: 32,
  maxRows: 8,
  maxSeqs: 4,
  numBlocks: 8,
  blockSize: 16,
  maxBlocksPerSeq: 4,
  numSlots: 4,
  numHostBlocks: 6,
}

/** The fixture has 320 tokens. */
const MASK_WORDS = 10

const INTERESTING = [-1, 0, 1, 2, 3, 4, 15, 16, 17, 64, 127, 128, 4096, 2 ** 31 - 1, -(2 ** 31)]

function pickNumber(random: Random): number {
  return random.int(0, 1) === 0
    ? INTERESTING[random.int(0, INTERESTING.length - 1)]!
    : random.int(-20, 600)
}

function mutateWords(words: Int32Array, random: Random): Int32Array {
  const copy = random.int(0, 7) === 0 ? words.slice(0, random.int(0, words.length)) : words.slice()
  for (let count = random.int(1, 3); count > 0 && copy.length > 0; count--) {
    copy[random.int(0, copy.length - 1)] = pickNumber(random)
  }
  return copy
}

/** Replaces one to three numbers of the JSON text, now and then damages a byte. */
function mutateText(text: string, random: Random): string {
  let copy = text
  for (let count = random.int(1, 3); count > 0; count--) {
    const at = random.int(0, copy.length - 1)
    if (random.int(0, 9) === 0) {
      copy = copy.slice(0, at) + String.fromCharCode(random.int(0, 255)) + copy.slice(at + 1)
      continue
    }
    const digits = /\d+/.exec(copy.slice(at))
    if (digits === null) continue
    const begin = at + digits.index
    copy = copy.slice(0, begin) + String(pickNumber(random)) + copy.slice(begin + digits[0].length)
  }
  return copy
}

/** 21 tokens of two sequences that sample with penalties, a bias and log-probabilities. */
function validStep(
  blockCopies: readonly number[] = [2, 5],
  swapOut: readonly number[] = [3, 0, 2, 6, 2, 1],
  swapIn: readonly number[] = [4, 1, 2],
): Int32Array {
  const range = (length: number) => Array.from({ length }, (_, index) => index)
  const flags = ROW_FLAG.sample | ROW_FLAG.logprob | ROW_FLAG.logits | (4 << 8)
  const params = (slot: number) => [
    slot,
    ...[7, 0],
    ...wordsOf(0.7),
    5,
    ...wordsOf(0.9, 0.01, 1.1, 0.2, 0.1),
    ...[0, 0],
  ]
  return encodeStep(
    new Map<number, readonly number[]>([
      [STEP_SECTION.partBounds, [0, 11, 21]],
      [STEP_SECTION.tokens, range(21)],
      [STEP_SECTION.positions, [...range(13), ...range(8)]],
      [STEP_SECTION.kvSlots, [...range(13), ...range(8).map((i) => 32 + i)]],
      [STEP_SECTION.seqStarts, [0, 13, 21]],
      [STEP_SECTION.seqLens, [13, 8]],
      [STEP_SECTION.blockTables, [0, 1, 2, -1]],
      [STEP_SECTION.rows, [12, 0, -1, flags, 20, 1, 5, flags]],
      [STEP_SECTION.slotParams, [...params(0), ...params(1)]],
      [STEP_SECTION.slotHistory, [0, 3, 1, 2, 3]],
      [STEP_SECTION.slotBias, [1, 1, 4, ...wordsOf(-2)]],
      [STEP_SECTION.blockCopies, blockCopies],
      [STEP_SECTION.swapOut, swapOut],
      [STEP_SECTION.swapIn, swapIn],
      [STEP_SECTION.allowedTokens, [1, MASK_WORDS, ...range(MASK_WORDS), 0, 0]],
    ]),
  )
}

describe('a real program', () => {
  let runtime: NativeRuntime
  let compiled: CompiledModel
  let program: number
  const step = validStep()

  beforeAll(async () => {
    const folder = fileURLToPath(new URL('fixtures/golden/qwen3-qknorm', import.meta.url))
    compiled = compileModel(loadModel(folder), {
      tensorParallel: 2,
      parts: 2,
      precision: 'f32',
      limits: LIMITS,
    })
    runtime = openRuntime(2, { heapBytes: compiled.program.arenaBytes })
    await runtime.loadWeights(JSON.stringify(compiled.manifest))
    program = await runtime.loadProgram(JSON.stringify(compiled.program))
  })
  afterAll(() => runtime.close())

  const outcome = async (promise: Promise<unknown>): Promise<string> => {
    try {
      await promise
      return 'ran'
    } catch (error) {
      const { code, message } = toEngineError(error)
      return code === 'ERR_PROGRAM' || code === 'ERR_STEP' ? code : `${code}: ${message}`
    }
  }

  test('the step it starts from runs', async () => {
    expect(await outcome(runtime.submit(program, step))).toBe('ran')
  })

  test.each<[string, number[], string]>([
    ['two copies of one block', [2, 5, 2, 6], 'ran'],
    ['a destination twice', [2, 5, 3, 5], 'ERR_STEP'],
    ['a source that is written', [2, 5, 5, 6], 'ERR_STEP'],
    ['a source that was written', [5, 6, 2, 5], 'ERR_STEP'],
    ['a copy onto itself', [2, 2], 'ERR_STEP'],
    ['half a pair', [2, 5, 3], 'ERR_STEP'],
    ['more copies than blocks', Array.from({ length: 18 }, () => 1), 'ERR_STEP'],
  ])('block copies: %s', async (_, copies, expected) => {
    expect(await outcome(runtime.submit(program, validStep(copies)))).toBe(expected)
  })

  test('a slot that is set twice, and sections that share words, are refused', async () => {
    const sectionsOf = (words: Int32Array) =>
      Array.from({ length: words[4]! }, (_, index) => 5 + 4 * index)
    const at = (words: Int32Array, kind: number) =>
      sectionsOf(words).find((entry) => words[entry] === kind)!
    const refused = async (change: (words: Int32Array) => void) => {
      const words = step.slice()
      change(words)
      return (await rejection(runtime.submit(program, words))).message
    }
    const twice = await refused((words) => {
      const params = words[at(words, STEP_SECTION.slotParams) + 2]!
      words[params + SLOT_PARAM_WORDS] = words[params]!
    })
    expect(twice).toContain('a slot is set twice in one step')
    const shared = await refused((words) => {
      words[at(words, STEP_SECTION.tokens) + 2] = words[at(words, STEP_SECTION.positions) + 2]!
    })
    expect(shared).toMatch(/tokens of group 0 and positions of group 0|positions .* and tokens/)
    const byOne = await refused((words) => {
      words[at(words, STEP_SECTION.kvSlots) + 2] = words[at(words, STEP_SECTION.kvSlots) + 2]! + 1
    })
    expect(byOne).toContain('overlap')
    // An empty section may stand anywhere behind the table.
    expect(await outcome(runtime.submit(program, validStep([])))).toBe('ran')
  })

  test.each<[string, number[], number[], string]>([
    ['a run of all blocks', [0, 0, 6], [2, 0, 6], 'ran'],
    ['a host block twice', [0, 2, 2, 4, 3, 1], [], 'ERR_STEP'],
    ['a device block twice', [], [0, 2, 2, 1, 4, 1], 'ERR_STEP'],
    ['a device block copied out twice', [0, 2, 2, 0, 4, 2], [], 'ran'],
    ['a run past the host', [0, 5, 2], [], 'ERR_STEP'],
    ['a run past the cache', [], [7, 0, 2], 'ERR_STEP'],
    ['an empty run', [0, 0, 0], [], 'ERR_STEP'],
    ['a negative run', [4, 4, -2], [], 'ERR_STEP'],
    ['a run of 2^31 - 1', [], [1, 1, 2 ** 31 - 1], 'ERR_STEP'],
    ['two thirds of a run', [0, 0], [], 'ERR_STEP'],
  ])('swaps: %s', async (_, out, back, expected) => {
    expect(await outcome(runtime.submit(program, validStep([], out, back)))).toBe(expected)
  })

  test('swaps move blocks to the host, then back, then the copies', async () => {
    const name = compiled.program.buffers.find((buffer) => buffer.space === 'kv')!.name
    const rowBytes = (await runtime.read(-1, name, 1)).length / LIMITS.numBlocks
    const fill = new Uint8Array(LIMITS.numBlocks * rowBytes)
    for (let block = 0; block < LIMITS.numBlocks; block++)
      fill.fill(block + 1, block * rowBytes, (block + 1) * rowBytes)
    await runtime.write(-1, name, 1, fill)
    // Blocks 0..2 belong to the step's sequences and are written by it.
    await runtime.submit(program, validStep([7, 3], [4, 0, 3], [6, 0, 2, 5, 2, 1]))
    const after = await runtime.read(-1, name, 1)
    const contents = [3, 4, 5, 6, 7].map((block) => {
      const bytes = after.subarray(block * rowBytes, (block + 1) * rowBytes)
      return bytes.every((byte) => byte === bytes[0]) ? bytes[0] : -1
    })
    // {4, 5, 6} → host 0..2; 6 and 7 ← host 0 and 1, 5 ← host 2; 3 ← 7.
    expect(contents).toEqual([6, 5, 7, 5, 6])
  })

  test('a program that swaps needs weights loaded with as many host blocks', async () => {
    const limits = { ...LIMITS, numHostBlocks: 7 }
    const wrong = { ...compiled.program, limits: { ...compiled.program.limits, ...limits } }
    expect(await outcome(runtime.loadProgram(JSON.stringify(wrong)))).toBe('ERR_PROGRAM')
  })

  test('4,000 damaged steps', async () => {
    const random = createRandom(11)
    const outcomes = new Map<string, number>()
    for (let i = 0; i < 4000; i++) {
      const got = await outcome(runtime.submit(program, mutateWords(step, random)))
      outcomes.set(got, (outcomes.get(got) ?? 0) + 1)
    }
    expect([...outcomes.keys()].sort()).toEqual(['ERR_STEP', 'ran'])
  })

  test('1,500 damaged programs, those that load also run', async () => {
    const random = createRandom(12)
    const text = JSON.stringify(compiled.program)
    const outcomes = new Map<string, number>()
    for (let i = 0; i < 1500; i++) {
      const got = await outcome(
        runtime.loadProgram(mutateText(text, random)).then((id) => runtime.submit(id, step)),
      )
      outcomes.set(got, (outcomes.get(got) ?? 0) + 1)
    }
    // Whether a mutant's limits refuse the step is chance.
    const codes = [...outcomes.keys()].filter((code) => code !== 'ERR_STEP')
    expect(codes.sort()).toEqual(['ERR_PROGRAM', 'ran'])
  })
})

test('every wait of a compiled program is needed: without any one of them it is refused', async () => {
  const folder = fileURLToPath(new URL('fixtures/golden/gemma3', import.meta.url))
  const { program, manifest } = compileModel(loadModel(folder), {
    tensorParallel: 2,
    parts: 3,
    precision: 'f32',
    limits: LIMITS,
  })
  const runtime = openRuntime(2, { heapBytes: program.arenaBytes })
  await runtime.loadWeights(JSON.stringify(manifest))
  await runtime.loadProgram(JSON.stringify(program))
  const outcomes: string[] = []
  for (const [index, op] of program.ops.entries()) {
    for (const removed of op.waits) {
      const ops = [...program.ops]
      ops[index] = { ...op, waits: op.waits.filter((wait) => wait !== removed) }
      const load = runtime.loadProgram(JSON.stringify({ ...program, ops }))
      outcomes.push(
        await load.then(
          () => `loaded without ${op.label} waiting for ${program.ops[removed]!.label}`,
          (error) => toEngineError(error).code,
        ),
      )
    }
  }
  expect(outcomes.length).toBeGreaterThan(50)
  expect([...new Set(outcomes)]).toEqual(['ERR_PROGRAM'])
  await runtime.close()
})

describe('hostile programs', () => {
  const withOp = (changes: Partial<ProgramOp>) =>
    twoBufferProgram(1, [{ ...sumOp(), ...changes } as ProgramOp])
  const copy = (label: string, lane: ProgramOp['lane'], waits: number[] = []): ProgramOp => ({
    ...sumOp(label),
    kind: 'copy',
    lane,
    waits,
  })
  const withBuffer = (changes: object) => {
    const base = twoBufferProgram(1, [sumOp()])
    return { ...base, buffers: [base.buffers[0], { ...base.buffers[1], ...changes }] }
  }
  const withLimits = (limits: Partial<Program['limits']>, shape: ProgramShape = ['T', 8]) => {
    const program = withBuffer({ shape })
    return { ...program, limits: { ...program.limits, ...limits } }
  }
  const overlapping = (count: number) => {
    const base = twoBufferProgram(1, [])
    const buffers = Array.from({ length: count }, (_, i) => ({ ...base.buffers[0], name: `b${i}` }))
    return { ...base, buffers }
  }

  test.each<[string, unknown]>([
    ['not JSON', undefined],
    ['no object', [1, 2]],
    ['another version', { ...twoBufferProgram(1, []), version: 2 }],
    ['another world', twoBufferProgram(2, [])],
    ['five parts', { ...twoBufferProgram(1, []), parts: 5 }],
    ['an arena larger than the heap', { ...twoBufferProgram(1, []), arenaBytes: 2 ** 40 }],
    ['an unknown op', withOp({ kind: 'rm_rf' })],
    ['an unknown lane', withOp({ lane: 'fast' as ProgramOp['lane'] })],
    ['an unknown attribute', withOp({ attrs: { speed: 9 } })],
    ['a missing input', withOp({ inputs: [] })],
    ['a null input', withOp({ inputs: [null] })],
    ['a buffer that is not there', withOp({ inputs: [{ buffer: 2 }] })],
    ['a negative buffer', withOp({ inputs: [{ buffer: -1 }] })],
    ['a part that is not there', withOp({ inputs: [{ buffer: 0, part: 1 }] })],
    ['a wait for itself', withOp({ waits: [0] })],
    ['a buffer outside the arena', withBuffer({ offset: 1 << 20 })],
    ['an unaligned buffer', withBuffer({ offset: 520 })],
    ['operands that share bytes', withBuffer({ offset: 64 })],
    ['a buffer of 2^60 bytes', withBuffer({ shape: ['T', 2 ** 30, 2 ** 30] })],
    ['2^60 bytes a row, no rows', withLimits({ maxRows: 0 }, ['R', 2 ** 30, 2 ** 30])],
    ['2^31 columns', { ...withLimits({ maxRows: 0 }, ['R', 2 ** 31]), ops: [] }],
    ['more slots than 2^16', withLimits({ numSlots: 2 ** 16 + 1 })],
    ['a million pairs of overlapping buffers', overlapping(1500)],
    ['an empty dimension', withBuffer({ shape: ['T', 0] })],
    ['a symbol in second place', withBuffer({ shape: [8, 'T'] })],
    ['a dtype from nowhere', withBuffer({ dtype: 'f64' })],
    ['a weight that was not loaded', withBuffer({ space: 'weight', shape: [4, 4] })],
    ['two ops of one label', twoBufferProgram(1, [sumOp(), sumOp()])],
    ['a hazard between lanes', twoBufferProgram(1, [copy('a', 'compute'), copy('b', 'memory')])],
    ['arrays 100,000 deep', undefined],
  ])('%s: ERR_PROGRAM', async (name, program) => {
    const runtime = openRuntime(1)
    const text =
      program !== undefined
        ? JSON.stringify(program)
        : name.startsWith('arrays')
          ? '['.repeat(100_000)
          : '{"version": 1,'
    expect((await rejection(runtime.loadProgram(text))).code).toBe('ERR_PROGRAM')
    await runtime.close()
  })

  test('the same ops load once the second waits for the first', async () => {
    const runtime = openRuntime(1)
    const program: Program = twoBufferProgram(1, [copy('a', 'compute'), copy('b', 'memory', [0])])
    expect(await runtime.loadProgram(JSON.stringify(program))).toBe(0)
    await runtime.close()
  })
})

describe('hostile steps', () => {
  const edit = (change: (words: Int32Array) => void) => {
    const words = tokensStep(4)
    change(words)
    return words
  }
  // Header 5 words, table 3 × 4, then bounds [0, 4], tokens, positions.
  test.each<[string, Int32Array]>([
    ['empty', new Int32Array(0)],
    ['cut header', tokensStep(4).slice(0, 4)],
    ['another version', edit((w) => w.fill(9, 0, 1))],
    ['unknown flags', edit((w) => w.fill(1, 2, 3))],
    ['-1 sections', edit((w) => w.fill(-1, 4, 5))],
    ['2^31 - 1 sections', edit((w) => w.fill(2 ** 31 - 1, 4, 5))],
    ['an unknown section', edit((w) => w.fill(99, 5, 6))],
    ['a group that is not there', edit((w) => w.fill(1, 6, 7))],
    ['a section before the table', edit((w) => w.fill(0, 7, 8))],
    ['a section past the end', edit((w) => w.fill(1000, 7, 8))],
    ['a length that overflows', edit((w) => w.fill(2 ** 31 - 1, 8, 9))],
    ['a section twice', edit((w) => w.fill(1, 9, 10))],
    ['bounds that descend', edit((w) => w.fill(5, 17, 18))],
    ['a token beyond the vocabulary', edit((w) => w.fill(100, 19, 20))],
    ['a slot that is not there', edit((w) => w.fill(-5, 19, 20))],
    ['a negative position', edit((w) => w.fill(-1, 23, 24))],
    ['too many tokens', tokensStep(17)],
  ])('%s: ERR_STEP', async (_, words) => {
    const runtime = openRuntime(1)
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(1, [sumOp()])))
    const error = await rejection(runtime.submit(program, words))
    expect(error).toBeInstanceOf(EngineError)
    expect(error.code).toBe('ERR_STEP')
    expect((await runtime.submit(program, tokensStep(4)))[0]).toBe(1) // still works
    await runtime.close()
  })
})
