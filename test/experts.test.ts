/**
 * Dispatch and combine over ranks: 10,000 random routings against a plain sum, any layout, nano-batches,
 * late and dead ranks. Inputs are small whole numbers, so results are compared exactly.
 */

import { describe, expect, it } from 'vitest'
import { STEP_SECTION } from '../lib/engine/step.ts'
import { groupedGlu } from '../lib/ops/grouped-glu.ts'
import { groupedMatmul } from '../lib/ops/grouped-matmul.ts'
import { moeCombine } from '../lib/ops/moe-combine.ts'
import { type DispatchBuffers, moeDispatch } from '../lib/ops/moe-dispatch.ts'
import { moeRoute } from '../lib/ops/moe-route.ts'
import { stall } from '../lib/ops/stall.ts'
import { ProgramBuilder } from '../lib/program/builder.ts'
import { splitNanoBatches } from '../lib/program/passes/nano-batch.ts'
import { limitsFor, rowsStep } from './ops/op-case.ts'
import { route } from './ops/routing-reference.ts'
import { expectAgree, expectExact, expectWithin } from './ops/tolerance.ts'
import { ON_CPU } from './support/device.ts'
import { encodeStep, OpRuntime, placeApart, type WeightValues } from './support/native.ts'
import { createRandom, type Random } from './support/random.ts'

const HIDDEN = 16
const MAX_ROWS = 6
/** Padded rows of an expert's [HIDDEN, HIDDEN] weight. */
const EXPERT_ROWS = 16

interface Layout {
  readonly world: number
  readonly tp: number
  readonly ep: number
  readonly experts: number
  readonly k: number
  /** A shared expert, behind a gate or not. */
  readonly shared?: 'plain' | 'gated'
  readonly stalled?: { readonly rank: number; readonly ms: number }
}

/** Expert e multiplies by e + 1; a slice of its width does a part of that. */
function expertWeights({ world, ep, experts }: Layout): WeightValues {
  const slices = world / ep
  const perRank = Math.ceil(experts / ep)
  const ranks = Array.from({ length: world }, (_, rank) => {
    const values = new Float64Array(perRank * EXPERT_ROWS * HIDDEN)
    const first = Math.floor(rank / slices) * perRank
    const count = Math.min(perRank, Math.max(0, experts - first))
    for (let local = 0; local < count; local++) {
      const whole = first + local + 1
      const part = rank % slices === 0 ? whole - (slices - 1) : 1
      for (let i = 0; i < HIDDEN; i++) {
        values[(local * EXPERT_ROWS + i) * HIDDEN + i] = part
      }
    }
    return values
  })
  return { weight: ranks }
}

function buildProgram(layout: Layout, parts: number) {
  const { world, tp, ep, experts, k, shared: sharedKind } = layout
  const limits = limitsFor(MAX_ROWS)
  const builder = new ProgramBuilder({ name: 'experts', world, tp, limits })
  const received = (world / tp) * limits.maxTokens
  const perRank = Math.ceil(experts / ep)
  const x = builder.arena('x', 'f32', ['T', HIDDEN])
  const ids = builder.arena('ids', 'i32', ['T', k])
  const weights = builder.arena('weights', 'f32', ['T', k])
  const buffers: DispatchBuffers = {
    hidden: builder.arena('hidden', 'f32', [received, HIDDEN]),
    rxIds: builder.arena('rx_ids', 'i32', [received, k]),
    counts: builder.arena('counts', 'i32', [1, world / tp]),
    rows: builder.arena('rows', 'i32', [received, k]),
    grouped: builder.arena('grouped', 'f32', [received * k, HIDDEN]),
    offsets: builder.arena('offsets', 'i32', [perRank + 1]),
  }
  const weight = builder.weight('weight', 'f32', [perRank * EXPERT_ROWS, HIDDEN], 'matmul')
  const expertOut = builder.arena('expert_out', 'f32', [received * k, HIDDEN])
  const shared = sharedKind && builder.arena('shared', 'f32', ['T', HIDDEN])
  const sharedGate = sharedKind === 'gated' ? builder.arena('gate', 'f32', ['T', 1]) : undefined
  const y = builder.arena('y', 'f32', ['T', HIDDEN])
  if (layout.stalled) builder.add('stall', stall({ x }, layout.stalled))
  const attrs = { experts, ep }
  builder.add('dispatch', moeDispatch({ x, ids, ...buffers }, attrs))
  builder.add(
    'expert',
    groupedMatmul({ x: buffers.grouped, offsets: buffers.offsets, weight, y: expertOut }),
  )
  const { rows } = buffers
  builder.add(
    'combine',
    moeCombine({ expertOut, rows, ids, weights, shared, sharedGate, y }, attrs),
  )
  return placeApart({ build: () => splitNanoBatches(builder.build(), parts) })
}

/** What one attention group brings to a step. */
interface GroupInput {
  readonly bounds: readonly number[]
  readonly x: Float64Array
  readonly ids: number[]
  readonly weights: number[]
}

type Kind = 'any' | 'one expert' | 'duplicates' | 'none'
const KINDS: readonly Kind[] = ['any', 'any', 'any', 'one expert', 'duplicates', 'none']

function randomInput(random: Random, { experts, k }: Layout, parts: number): GroupInput {
  const count = random.next() < 0.25 ? 0 : random.int(1, MAX_ROWS)
  const kind = KINDS[random.int(0, KINDS.length - 1)]!
  const favourite = random.int(0, experts - 1)
  const pick = () => {
    if (kind === 'none') return -1
    if (kind === 'one expert') return favourite
    return random.next() < 0.1 ? -1 : random.int(0, experts - 1)
  }
  const ids = Array.from({ length: count }, () => {
    const chosen: number[] = []
    while (chosen.length < k) {
      const id = pick()
      chosen.push(kind === 'any' && chosen.includes(id) ? -1 : id)
    }
    return chosen
  }).flat()
  const inner = Array.from({ length: parts - 1 }, () => random.int(0, count)).sort((a, b) => a - b)
  return {
    bounds: [0, ...inner, count],
    x: Float64Array.from({ length: count * HIDDEN }, () => random.int(-9, 9)),
    ids,
    weights: ids.map((id) => (id < 0 ? 0 : random.int(1, 8))),
  }
}

function expectedOutput({ x, ids, weights }: GroupInput, { k }: Layout): Float64Array {
  return Float64Array.from(x, (value, index) => {
    const row = Math.floor(index / HIDDEN)
    let sum = 0
    for (let j = row * k; j < (row + 1) * k; j++) sum += weights[j]! * (ids[j]! + 1) * value
    return sum
  })
}

function stepOf(inputs: readonly GroupInput[]): Int32Array {
  return encodeStep(
    ...inputs.map(
      ({ bounds }) => new Map([[STEP_SECTION.partBounds, bounds], ...rowsStep(bounds.at(-1)!)]),
    ),
  )
}

async function writeInputs(runtime: OpRuntime, layout: Layout, inputs: readonly GroupInput[]) {
  for (let rank = 0; rank < layout.world; rank++) {
    const { x, ids, weights } = inputs[Math.floor(rank / layout.tp)]!
    if (ids.length === 0) continue
    await runtime.write('x', rank, x)
    await runtime.write('ids', rank, ids)
    await runtime.write('weights', rank, weights)
  }
}

async function expectOutputs(runtime: OpRuntime, layout: Layout, inputs: readonly GroupInput[]) {
  for (let rank = 0; rank < layout.world; rank++) {
    const input = inputs[Math.floor(rank / layout.tp)]!
    const output = await runtime.read('y', rank)
    const expected = expectedOutput(input, layout)
    expectExact(output.subarray(0, expected.length), expected)
  }
}

const LAYOUTS: readonly (Layout & { readonly parts: number; readonly steps: number })[] = [
  { world: 1, tp: 1, ep: 1, experts: 5, k: 3, parts: 1, steps: 1000 },
  { world: 2, tp: 1, ep: 2, experts: 7, k: 2, parts: 1, steps: 2000 },
  { world: 2, tp: 2, ep: 2, experts: 6, k: 6, parts: 2, steps: 1000 },
  { world: 4, tp: 1, ep: 4, experts: 4, k: 4, parts: 1, steps: 2000 },
  { world: 4, tp: 2, ep: 4, experts: 9, k: 3, parts: 2, steps: 1000 },
  { world: 4, tp: 4, ep: 2, experts: 8, k: 2, parts: 1, steps: 1000 },
  { world: 4, tp: 1, ep: 2, experts: 3, k: 2, parts: 2, steps: 1000 },
  { world: 3, tp: 1, ep: 3, experts: 10, k: 5, parts: 1, steps: 1000 },
]

describe('random routings', () => {
  it('are 10,000 in all', () => {
    expect(LAYOUTS.reduce((sum, { steps }) => sum + steps, 0)).toBe(10_000)
  })

  it.each(LAYOUTS)(
    '$world ranks, tp $tp, ep $ep, $experts experts, top $k, $parts parts',
    async (layout) => {
      const { parts, steps } = layout
      const runtime = await OpRuntime.open(buildProgram(layout, parts), {
        weights: expertWeights(layout),
      })
      try {
        await runtime.poison()
        const random = createRandom(layout.experts)
        const groups = layout.world / layout.tp
        for (let step = 0; step < steps; step++) {
          const inputs = Array.from({ length: groups }, () => randomInput(random, layout, parts))
          await writeInputs(runtime, layout, inputs)
          await runtime.submit(stepOf(inputs))
          await expectOutputs(runtime, layout, inputs)
        }
      } finally {
        await runtime.close()
      }
    },
    300_000,
  )
})

describe('the shared expert', () => {
  it.each(['plain', 'gated'] as const)('%s, is summed over the group', async (kind) => {
    const layout: Layout = { world: 4, tp: 2, ep: 4, experts: 4, k: 2, shared: kind }
    const runtime = await OpRuntime.open(buildProgram(layout, 1), {
      weights: expertWeights(layout),
    })
    try {
      const random = createRandom(7)
      const inputs = [0, 1].map(() => {
        const rows = 5
        const input = randomInput(random, layout, 1)
        return {
          ...input,
          bounds: [0, rows],
          x: Float64Array.from({ length: rows * HIDDEN }, () => random.int(-9, 9)),
          ids: Array.from({ length: rows * 2 }, (_, i) => (i * 3) % 4),
          weights: Array.from({ length: rows * 2 }, () => random.int(1, 3)),
        }
      })
      await writeInputs(runtime, layout, inputs)
      for (let rank = 0; rank < 4; rank++) {
        await runtime.write(
          'shared',
          rank,
          inputs[0]!.x.map(() => rank + 1),
        )
        // σ(0) = ½, exactly.
        if (kind === 'gated') await runtime.write('gate', rank, new Float64Array(5))
      }
      await runtime.submit(stepOf(inputs))
      for (let rank = 0; rank < 4; rank++) {
        const group = Math.floor(rank / 2)
        const shared = (group === 0 ? 1 + 2 : 3 + 4) * (kind === 'gated' ? 0.5 : 1)
        const expected = expectedOutput(inputs[group]!, layout).map((value) => value + shared)
        const output = await runtime.read('y', rank)
        expectExact(output.subarray(0, expected.length), expected)
      }
    } finally {
      await runtime.close()
    }
  })
})

describe('ranks that do not keep up', () => {
  const inputsFor = (layout: Layout) => {
    const random = createRandom(11)
    const input = () => {
      for (;;) {
        const made = randomInput(random, layout, 1)
        if (made.ids.length > 0) return made
      }
    }
    return Array.from({ length: layout.world / layout.tp }, input)
  }

  it('a late rank changes nothing but time', async () => {
    for (const rank of [0, 3]) {
      const layout = { world: 4, tp: 1, ep: 4, experts: 6, k: 3, stalled: { rank, ms: 15 } }
      const inputs = inputsFor(layout)
      const runtime = await OpRuntime.open(buildProgram(layout, 1), {
        weights: expertWeights(layout),
      })
      try {
        await writeInputs(runtime, layout, inputs)
        await runtime.submit(stepOf(inputs))
        await expectOutputs(runtime, layout, inputs)
      } finally {
        await runtime.close()
      }
    }
  })

  it('a dead rank ends in an error that names it', async () => {
    const layout = { world: 4, tp: 1, ep: 4, experts: 6, k: 3, stalled: { rank: 2, ms: -1 } }
    const inputs = inputsFor(layout)
    const weights = expertWeights(layout)
    const runtime = await OpRuntime.open(buildProgram(layout, 1), { weights, waitTimeoutMs: 300 })
    try {
      await writeInputs(runtime, layout, inputs)
      await expect(runtime.submit(stepOf(inputs))).rejects.toMatchObject({
        code: 'ERR_RANK_TIMEOUT',
        rank: 2,
        op: 'dispatch',
      })
    } finally {
      await runtime.close()
    }
  })
})

describe('moe_route', () => {
  it('agrees with the reference on 10,000 random rows, and with itself on other ranks', async () => {
    const [rows, experts, k] = [10_000, 24, 6]
    const attrs = {
      score: 'sigmoid',
      normalise: true,
      groups: 6,
      top_groups: 3,
      group_score: 'max',
    } as const
    const builder = new ProgramBuilder({ name: 'route', world: 2, tp: 2, limits: limitsFor(rows) })
    const logits = builder.arena('logits', 'f32', ['T', experts])
    const ids = builder.arena('ids', 'i32', ['T', k])
    const weights = builder.arena('weights', 'f32', ['T', k])
    builder.add('route', moeRoute({ logits, ids, weights }, attrs))
    const random = createRandom(21)
    // Sixteenths: many ties, and scores whose sums the reference orders as float32 does.
    const values = Float64Array.from({ length: rows * experts }, () =>
      random.next() < 0.05 ? Number.NaN : random.int(-48, 48) / 16,
    )
    const runtime = await OpRuntime.open(placeApart(builder), { threadsPerRank: 3 })
    try {
      for (const rank of [0, 1]) await runtime.write('logits', rank, values)
      await runtime.submit(
        encodeStep(new Map([[STEP_SECTION.partBounds, [0, rows]], ...rowsStep(rows)])),
      )
      const routes = Array.from({ length: rows }, (_, row) =>
        route(values.subarray(row * experts, (row + 1) * experts), k, attrs),
      )
      const chosen = await runtime.read('ids', 0)
      expectExact(
        chosen.subarray(0, rows * k),
        routes.flatMap((r) => r.ids),
      )
      const weighed = await runtime.read('weights', 0)
      expectWithin(
        'close',
        weighed.subarray(0, rows * k),
        routes.flatMap((r) => r.weights),
        'f32',
      )
      expectAgree(
        [await runtime.readBytes('ids', 0), await runtime.readBytes('ids', 1)].map((b) =>
          b.subarray(0, rows * k * 4),
        ),
      )
    } finally {
      await runtime.close()
    }
  })

  it('gives padding rows no expert', async () => {
    const limits = limitsFor(3, { numBlocks: 1, maxBlocksPerSeq: 1 })
    const builder = new ProgramBuilder({ name: 'route', world: 1, tp: 1, limits })
    const logits = builder.arena('logits', 'f32', ['T', 4])
    const ids = builder.arena('ids', 'i32', ['T', 2])
    const weights = builder.arena('weights', 'f32', ['T', 2])
    builder.add('route', moeRoute({ logits, ids, weights }, { score: 'softmax_chosen' }))
    const runtime = await OpRuntime.open(placeApart(builder))
    try {
      await runtime.poison()
      await runtime.write('logits', 0, [1, 2, 2, 0, 9, 9, 9, 9, 0, 1, 0, 1])
      await runtime.submit(
        encodeStep(
          new Map<number, ArrayLike<number>>([
            [STEP_SECTION.partBounds, [0, 3]],
            ...rowsStep(3),
            [STEP_SECTION.kvSlots, [0, -1, 1]],
            [STEP_SECTION.seqStarts, [0, 3]],
            [STEP_SECTION.seqLens, [3]],
            [STEP_SECTION.blockTables, [0]],
          ]),
        ),
      )
      const chosen = await runtime.read('ids', 0)
      expectExact(chosen.subarray(0, 6), [1, 2, -1, -1, 1, 3])
      const weighed = await runtime.read('weights', 0)
      expectExact(weighed.subarray(0, 6), [0.5, 0.5, 0, 0, 0.5, 0.5])
    } finally {
      await runtime.close()
    }
  })
})

describe('rows named by the arena are not trusted', () => {
  const ROWS = 6
  const fails = async (builder: ProgramBuilder, inputs: Record<string, number[]>) => {
    const runtime = await OpRuntime.open(placeApart(builder))
    try {
      await runtime.poison()
      for (const [name, values] of Object.entries(inputs)) await runtime.write(name, 0, values)
      const step = rowsStep(1).set(STEP_SECTION.partBounds, [0, 1])
      const submitted = runtime.submit(encodeStep(step))
      // A kernel has nobody to tell: it stays within its buffers.
      if (ON_CPU) await expect(submitted).rejects.toMatchObject({ code: 'ERR_PROGRAM' })
      else await expect(submitted).resolves.toBeDefined()
    } finally {
      await runtime.close()
    }
  }
  const newBuilder = () =>
    new ProgramBuilder({ name: 'hostile', world: 1, tp: 1, limits: limitsFor(1) })

  it.each([
    [[0, 2, ROWS + 1]],
    [[0, 2 ** 30, 2 ** 30]],
    [[0, 4, 3]],
    [[-1, 2, 3]],
    [[-(2 ** 31), 0, 2]],
  ])('offsets %j', async (offsetValues) => {
    const matmul = newBuilder()
    const x = matmul.arena('x', 'f32', [ROWS, HIDDEN])
    const weight = matmul.weight('weight', 'f32', [2 * EXPERT_ROWS, HIDDEN], 'matmul')
    const offsets = matmul.arena('offsets', 'i32', [3])
    const y = matmul.arena('y', 'f32', [ROWS, HIDDEN])
    matmul.add('op', groupedMatmul({ x, offsets, weight, y }))
    await fails(matmul, { offsets: offsetValues })
    const glu = newBuilder()
    const buffers = {
      gateUp: glu.arena('gate_up', 'f32', [ROWS, 2 * HIDDEN]),
      offsets: glu.arena('offsets', 'i32', [3]),
      y: glu.arena('y', 'f32', [ROWS, HIDDEN]),
    }
    glu.add('op', groupedGlu(buffers, { activation: 'silu' }))
    await fails(glu, { offsets: offsetValues })
  })

  it.each([-1, 2 ** 30, -(2 ** 31)])('row %d of an expert', async (row) => {
    const builder = newBuilder()
    const [k, received] = [2, limitsFor(1).maxTokens]
    builder.add(
      'op',
      moeCombine(
        {
          expertOut: builder.arena('expert_out', 'f32', [received * k, HIDDEN]),
          rows: builder.arena('rows', 'i32', [received, k]),
          ids: builder.arena('ids', 'i32', ['T', k]),
          weights: builder.arena('weights', 'f32', ['T', k]),
          y: builder.arena('y', 'f32', ['T', HIDDEN]),
        },
        { experts: 4, ep: 1 },
      ),
    )
    await fails(builder, { ids: [1, 3], weights: [1, 1], rows: [0, row] })
  })
})
