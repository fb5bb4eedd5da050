/**
 * Expert tables in the runtime: what moe_place answers and counts, copies of experts from rank to rank,
 * and what of it a step is refused for.
 */

import { afterEach, describe, expect, it } from 'vitest'
import { RESULT_SECTION, resultSections, STEP_FLAG, STEP_SECTION } from '../lib/engine/step.ts'
import { copy } from '../lib/ops/copy.ts'
import { moeDispatch } from '../lib/ops/moe-dispatch.ts'
import { moePlace } from '../lib/ops/moe-place.ts'
import {
  buildTable,
  EXPERT_WAYS,
  evenShares,
  hashTable,
  homeSlots,
  type Slots,
} from '../lib/parallel/balance/slots.ts'
import { ProgramBuilder } from '../lib/program/builder.ts'
import { validateProgram } from '../lib/program/validate.ts'
import { limitsFor, rowsStep } from './ops/op-case.ts'
import { encodeStep, OpRuntime, placeApart } from './support/native.ts'

const ROWS = 5
const CHOICES = 2
const WIDTH = 16
const EXPERTS = 5
const POSITIONS = 2
const PER_POSITION = 4
const LAYOUT = { experts: EXPERTS, positions: POSITIONS, slotsPerPosition: PER_POSITION }
const HOME = homeSlots(LAYOUT)
/** Expert 0 also on the other rank, 4 on this one. */
const MOVED = [0, 1, 2, 4, 3, 4, 0, -1]

const runtimes: OpRuntime[] = []
afterEach(async () => {
  for (const runtime of runtimes.splice(0)) await runtime.close()
})

/** Two ranks, each an attention group, and one table; slot s's weights are s + 1 in their diagonal. */
async function open(): Promise<OpRuntime> {
  const experts = {
    tables: 1,
    count: EXPERTS,
    slots: POSITIONS * PER_POSITION,
    positions: POSITIONS,
    choices: CHOICES,
  }
  const limits = limitsFor(ROWS, { experts })
  const builder = new ProgramBuilder({ name: 'place', world: POSITIONS, tp: 1, limits })
  const weight = (name: string) =>
    builder.weight(name, 'f32', [PER_POSITION * WIDTH, WIDTH], 'matmul')
  const [gateUp, down] = [weight('gate_up'), weight('down')]
  const bias = builder.weight('bias', 'f32', [PER_POSITION * WIDTH], 'plain')
  const ids = builder.arena('ids', 'i32', ['T', CHOICES])
  const slots = builder.arena('slots', 'i32', ['T', CHOICES])
  const x = builder.arena('x', 'f32', ['T', WIDTH])
  const received = POSITIONS * limits.maxTokens
  builder.add('place', moePlace({ ids, gateUp, down, gateUpBias: bias, slots }, { table: 0 }))
  // Keeps the ranks in step, as every program with experts does.
  const buffers = {
    hidden: builder.arena('hidden', 'f32', [received, WIDTH]),
    rxIds: builder.arena('rx_ids', 'i32', [received, CHOICES]),
    counts: builder.arena('counts', 'i32', [1, POSITIONS]),
    rows: builder.arena('rows', 'i32', [received, CHOICES]),
    grouped: builder.arena('grouped', 'f32', [received * CHOICES, WIDTH]),
    offsets: builder.arena('offsets', 'i32', [PER_POSITION + 1]),
  }
  const attrs = { experts: experts.slots, ep: POSITIONS }
  builder.add('dispatch', moeDispatch({ x, ids: slots, ...buffers }, attrs))
  const values = (scale: number) =>
    Array.from({ length: POSITIONS }, (_, rank) =>
      Float64Array.from(
        { length: PER_POSITION * WIDTH * WIDTH },
        (_, i) => scale * weightAt(rank * PER_POSITION + Math.floor(i / (WIDTH * WIDTH)), i),
      ),
    )
  const biases = Array.from({ length: POSITIONS }, (_, rank) =>
    Float64Array.from({ length: PER_POSITION * WIDTH }, (_, i) =>
      weightAt(rank * PER_POSITION + Math.floor(i / WIDTH), i % WIDTH),
    ),
  )
  const runtime = await OpRuntime.open(placeApart(builder), {
    weights: { gate_up: values(1), down: values(-1), bias: biases },
  })
  runtimes.push(runtime)
  return runtime
}

/** Exact in float32, and other for every slot and element. */
function weightAt(slot: number, index: number): number {
  return 1000 * (slot + 1) + (index % (WIDTH * WIDTH))
}

function tableWords(slots: Slots, hash?: number): number[] {
  const table = buildTable(evenShares(slots), EXPERTS)
  return [hash ?? hashTable(0, table), 0, ...table]
}

const ROWS_STEP = new Map([...rowsStep(ROWS), [STEP_SECTION.partBounds, [0, ROWS]]])

/** A step of ROWS rows in both groups. */
function stepOf(more: readonly (readonly [number, readonly number[]])[], flags = 0): Int32Array {
  const words = encodeStep(new Map([...ROWS_STEP, ...more]), ROWS_STEP)
  words[2] = flags
  return words
}

const IDS = [
  [0, 1, 4, 0, 0, 3, 2, 4, -1, -1],
  [4, 4, 0, 0, 3, 3, 0, 4, 1, 9],
]

async function place(runtime: OpRuntime, step: Int32Array) {
  for (const rank of [0, 1]) {
    await runtime.write('ids', rank, IDS[rank]!)
    await runtime.write('x', rank, new Float64Array(ROWS * WIDTH))
  }
  const { words } = await runtime.submit(step)
  const slots = [await runtime.read('slots', 0), await runtime.read('slots', 1)]
  return { words, slots: slots.map((values) => [...values.subarray(0, ROWS * CHOICES)]) }
}

/** What the table says for rows of a group, which begin at ways of their own. */
function expectedSlots(slots: Slots, group: number): number[] {
  const table = buildTable(evenShares(slots), EXPERTS)
  return IDS[group]!.map((expert, at) => {
    const way = (Math.floor(at / CHOICES) + group) % EXPERT_WAYS
    return expert < 0 || expert >= EXPERTS ? -1 : table[expert * EXPERT_WAYS + way]!
  })
}

describe('moe_place', () => {
  it('begins with experts in order, and follows the tables of a step', async () => {
    const runtime = await open()
    const before = await place(runtime, stepOf([]))
    expect(before.slots).toEqual([expectedSlots(HOME, 0), expectedSlots(HOME, 1)])
    const tables = [[STEP_SECTION.expertTables, tableWords(MOVED)]] as const
    const moved = await place(runtime, stepOf(tables))
    expect(moved.slots).toEqual([expectedSlots(MOVED, 0), expectedSlots(MOVED, 1)])
    expect(new Set(moved.slots.flat())).toContain(6)
    // They stay.
    expect((await place(runtime, stepOf([]))).slots).toEqual(moved.slots)
  })

  it('counts choices of each group until they are asked for, and gives them when asked', async () => {
    const runtime = await open()
    await place(runtime, stepOf([]))
    const asked = STEP_FLAG.expertCounts | STEP_FLAG.expertChoices
    const { words } = await place(runtime, stepOf([], asked))
    const counted = resultSections(words, RESULT_SECTION.expertCounts)
    expect(counted.map((counts) => [...counts])).toEqual([
      [6, 2, 2, 2, 4],
      [6, 2, 0, 4, 6],
    ])
    const choices = resultSections(words, RESULT_SECTION.expertChoices)
    expect(choices.map((ids) => [...ids])).toEqual(IDS)
    const again = await place(runtime, stepOf([], STEP_FLAG.expertCounts))
    expect([...resultSections(again.words, RESULT_SECTION.expertCounts)[0]!]).toEqual([
      3, 1, 1, 1, 2,
    ])
  })

  it('copies all weights of experts from rank to rank, others stay', async () => {
    const runtime = await open()
    const copies = [0, 5, 3, 0, 0, 6].flat()
    await place(
      runtime,
      stepOf([
        [STEP_SECTION.expertCopies, copies],
        [STEP_SECTION.expertTables, tableWords(MOVED)],
      ]),
    )
    const content = [0, 1, 2, 5, 4, 5, 0, 7]
    for (const [name, size, scale] of [
      ['gate_up', WIDTH * WIDTH, 1],
      ['down', WIDTH * WIDTH, -1],
      ['bias', WIDTH, 1],
    ] as const) {
      for (let slot = 0; slot < content.length; slot++) {
        const all = await runtime.read(name, Math.floor(slot / PER_POSITION))
        const first = (slot % PER_POSITION) * size
        const expected = Array.from({ length: size }, (_, i) => scale * weightAt(content[slot]!, i))
        expect([...all.subarray(first, first + size)], `${name}, slot ${slot}`).toEqual(expected)
      }
    }
  })

  it.each([
    ['a table of another number', 'expertTables', [0, 1, ...buildTable(evenShares(HOME), EXPERTS)]],
    ['a cut table', 'expertTables', tableWords(HOME).slice(0, -1)],
    ['a slot out of range', 'expertTables', [...tableWords(HOME).slice(0, -1), 8]],
    ['a negative slot', 'expertTables', [...tableWords(HOME).slice(0, -1), -1]],
    ['a cut copy', 'expertCopies', [0, 1]],
    ['a copy to no slot', 'expertCopies', [0, 1, 8]],
    ['a copy from no slot', 'expertCopies', [0, -1, 3]],
    ['two copies to one slot', 'expertCopies', [0, 1, 3, 0, 2, 3]],
    ['a copy from a destination', 'expertCopies', [0, 1, 3, 0, 3, 7]],
  ] as const)('refuses %s, and goes on', async (_, section, words) => {
    const runtime = await open()
    const step = stepOf([[STEP_SECTION[section], words]])
    await expect(runtime.submit(step)).rejects.toMatchObject({
      code: 'ERR_STEP',
      message: expect.stringContaining(section),
    })
    const after = await place(runtime, stepOf([]))
    expect(after.slots[0]).toEqual(expectedSlots(HOME, 0))
  })

  it('refuses sections of experts in another group, and unknown flags', async () => {
    const runtime = await open()
    const inSecond = encodeStep(
      ROWS_STEP,
      new Map([...ROWS_STEP, [STEP_SECTION.expertTables, tableWords(HOME)]]),
    )
    for (const [step, why] of [
      [inSecond, 'group 0'],
      [stepOf([], 4), 'flags'],
    ] as const)
      await expect(runtime.submit(step)).rejects.toMatchObject({
        code: 'ERR_STEP',
        message: expect.stringContaining(why),
      })
  })

  it('refuses positions that the ranks cannot be dealt to', async () => {
    const runtime = await open()
    const { limits } = runtime.program
    const experts = { ...limits.experts!, positions: 4, slots: 8 }
    const program = { ...runtime.program, limits: { ...limits, experts } }
    expect(() => validateProgram(program)).toThrow('positions')
    await expect(runtime.add(program)).rejects.toMatchObject({
      code: 'ERR_PROGRAM',
      message: expect.stringContaining('positions'),
    })
  })

  it('refuses to return more choices than a result may hold', async () => {
    const experts = { tables: 1024, count: 64, slots: 64, positions: 1, choices: 64 }
    const limits = limitsFor(4097, { experts })
    const builder = new ProgramBuilder({ name: 'choices', world: 1, tp: 1, limits })
    const x = builder.arena('x', 'f32', ['T', 8])
    const y = builder.arena('y', 'f32', ['T', 8])
    builder.add('copy', copy({ x, y }))
    const runtime = await OpRuntime.open(placeApart(builder))
    runtimes.push(runtime)
    const step = (rows: number) => {
      const words = encodeStep(new Map([...rowsStep(rows), [STEP_SECTION.partBounds, [0, rows]]]))
      words[2] = STEP_FLAG.expertChoices
      return words
    }
    await expect(runtime.submit(step(4097))).rejects.toMatchObject({
      code: 'ERR_STEP',
      message: expect.stringContaining('choices'),
    })
    await runtime.submit(step(1))
  })

  it('fails a step whose tables are not what the plan says', async () => {
    const runtime = await open()
    const wrong = stepOf([[STEP_SECTION.expertTables, tableWords(MOVED, 12345)]])
    await expect(runtime.submit(wrong)).rejects.toMatchObject({
      code: 'ERR_STEP',
      message: expect.stringContaining('no longer agree'),
    })
  })
})
