/**
 * The block of routed experts: route, dispatch, gate and up, activation, down, combine, and the
 * shared expert beside them. Its result is whole on every rank: the combine is the collective.
 */

import { EXPERT_ROW_MULTIPLE } from '../ops/experts.ts'
import { groupedGlu } from '../ops/grouped-glu.ts'
import { groupedMatmul } from '../ops/grouped-matmul.ts'
import { moeCombine } from '../ops/moe-combine.ts'
import { type DispatchBuffers, moeDispatch } from '../ops/moe-dispatch.ts'
import { moePlace } from '../ops/moe-place.ts'
import { moeRoute } from '../ops/moe-route.ts'
import { homeSlots, type Slots, slotsOfPositions } from '../parallel/balance/slots.ts'
import { roundUp, type Share, widthShare } from '../parallel/sharding.ts'
import type { ProgramLimits } from '../program/types.ts'
import type { WeightPlan } from '../weights/manifest.ts'
import {
  type BlockContext,
  columnParallel,
  declareWeight,
  type ExpertSlots,
  feedForwardBlock,
} from './blocks.ts'
import type { DecoderSpec, ExpertsSpec, LinearSpec } from './spec.ts'
import type { ExpertPlacementOptions } from './types.ts'
import type { ExpertMatrices } from './weights.ts'

/** Normalised hidden states x [T, hidden] → the experts' output, [T, hidden], on every rank. */
export function expertsBlock(
  context: BlockContext,
  name: string,
  x: number,
  spec: ExpertsSpec,
  table: number,
): number {
  const { builder, dtype, hiddenSize, ep } = context
  const layout = layoutOf(context, spec, table)
  // What is dispatched to are slots; where experts stay in place these are the experts.
  const attrs = { experts: layout.numTargets, ep }
  const { ids: chosen, weights } = addRoute(context, name, x, spec)
  const matrices = declareExperts(context, name, spec, layout)
  const ids = context.expertSlots ? addPlace(context, name, chosen, spec, table, matrices) : chosen
  const buffers = declareDispatch(context, name, spec, layout)
  builder.add(`${name}.dispatch`, moeDispatch({ x, ids, ...buffers }, attrs))
  const expertOut = addExperts(context, name, buffers, spec, layout, matrices)
  const { shared: sharedSpec } = spec
  const shared =
    sharedSpec && feedForwardBlock(context, `${name}.shared`, x, sharedSpec.feedForward)
  const sharedGate =
    sharedSpec?.gate && columnOnAll(context, `${name}.shared_gate`, x, sharedSpec.gate, 1)
  const y = builder.arena(`${name}.experts`, dtype, ['T', hiddenSize])
  builder.add(
    `${name}.combine`,
    moeCombine({ expertOut, rows: buffers.rows, ids, weights, shared, sharedGate, y }, attrs),
  )
  return y
}

/** A small projection that every rank computes in full, float32. */
function columnOnAll(
  context: BlockContext,
  name: string,
  x: number,
  linear: LinearSpec,
  rows: number,
): number {
  const share = () => ({ start: 0, count: rows, padded: rows })
  return columnParallel(context, name, x, [{ linear, share }], { dtype: 'f32' })
}

function addRoute(context: BlockContext, name: string, x: number, spec: ExpertsSpec) {
  const { builder, weights: planner } = context
  const { routing, gates } = spec
  const logits = columnOnAll(context, `${name}.router`, x, spec.router, gates.length)
  const ids = builder.arena(`${name}.ids`, 'i32', ['T', routing.choices])
  const weights = builder.arena(`${name}.weights`, 'f32', ['T', routing.choices])
  const bias =
    routing.bias === undefined
      ? undefined
      : declareWeight(context, planner.vectorOf(`${name}.route.bias`, routing.bias, gates.length))
  const { groups } = routing
  builder.add(
    `${name}.route`,
    moeRoute(
      { logits, bias, ids, weights },
      {
        score: routing.score,
        normalise: routing.normalise,
        scale: routing.scale,
        groups: groups?.count,
        top_groups: groups?.kept,
        group_score: groups?.worth,
      },
    ),
  )
  return { ids, weights }
}

/** The slots that serve the choices, by an expert table that steps may change. */
function addPlace(
  { builder }: BlockContext,
  name: string,
  ids: number,
  spec: ExpertsSpec,
  table: number,
  matrices: ExpertWeights,
): number {
  const slots = builder.arena(`${name}.slots`, 'i32', ['T', spec.routing.choices])
  builder.add(`${name}.place`, moePlace({ ids, ...matrices, slots }, { table }))
  return slots
}

/** What lies where: of a layer's experts, on every rank of the world. */
interface ExpertLayout {
  /** Slots of all positions together. */
  readonly numTargets: number
  /** Of a rank. */
  readonly numSlots: number
  readonly slots: (rank: number) => Slots
  readonly width: (rank: number) => Share
}

function layoutOf(
  { world, ep, expertSlots }: BlockContext,
  spec: ExpertsSpec,
  table: number,
): ExpertLayout {
  const experts = spec.gates.length
  const slices = world / ep
  const numSlots = expertSlots?.slotsPerPosition ?? Math.ceil(experts / ep)
  const all =
    expertSlots?.tables[table] ?? homeSlots({ experts, positions: ep, slotsPerPosition: numSlots })
  return {
    numTargets: expertSlots ? numSlots * ep : experts,
    numSlots,
    slots: (rank) => {
      const position = Math.floor(rank / slices)
      return all.slice(position * numSlots, (position + 1) * numSlots)
    },
    width: (rank) => widthShare(spec.intermediateSize, slices, rank % slices),
  }
}

/** Slots of every layer with experts; undefined where experts stay where they are loaded. */
export function planExpertSlots(
  { layers }: DecoderSpec,
  ep: number,
  placement: ExpertPlacementOptions | undefined,
): ExpertSlots | undefined {
  const counts = layers.flatMap(({ feedForward }) =>
    feedForward.kind === 'experts' ? [feedForward.gates.length] : [],
  )
  if (placement === undefined || counts.length === 0) return undefined
  const [experts] = counts as [number]
  const slotsPerPosition = Math.ceil(experts / ep) + placement.extraSlots
  const layout = { experts, positions: ep, slotsPerPosition }
  const tables = counts.map((_, table) => {
    const positions = placement.positions?.[table]
    return positions === undefined ? homeSlots(layout) : slotsOfPositions(positions, layout)
  })
  return { slotsPerPosition, tables }
}

/** What a program says of them, for steps to be checked. */
export function withExpertLimits(
  limits: ProgramLimits,
  { layers }: DecoderSpec,
  ep: number,
  slots: ExpertSlots | undefined,
): ProgramLimits {
  const blocks = layers.flatMap(({ feedForward }) =>
    feedForward.kind === 'experts' ? [feedForward] : [],
  )
  const [first] = blocks
  if (slots === undefined || first === undefined) return limits
  const experts = {
    tables: blocks.length,
    count: first.gates.length,
    slots: slots.slotsPerPosition * ep,
    positions: ep,
    choices: first.routing.choices,
  }
  return { ...limits, experts }
}

/** Buffers of the most that a rank can receive: every choice of every token of every group. */
function declareDispatch(
  context: BlockContext,
  name: string,
  spec: ExpertsSpec,
  { numSlots }: ExpertLayout,
): DispatchBuffers {
  const { builder, dtype, hiddenSize, world, tp } = context
  const { choices } = spec.routing
  const received = (world / tp) * builder.header.limits.maxTokens
  const buffer = (suffix: string, of: typeof dtype, shape: readonly number[]) =>
    builder.arena(`${name}.dispatch.${suffix}`, of, shape)
  return {
    hidden: buffer('hidden', dtype, [received, hiddenSize]),
    rxIds: buffer('ids', 'i32', [received, choices]),
    counts: buffer('counts', 'i32', [1, world / tp]),
    rows: buffer('rows', 'i32', [received, choices]),
    grouped: buffer('grouped', dtype, [received * choices, hiddenSize]),
    offsets: buffer('offsets', 'i32', [numSlots + 1]),
  }
}

interface ExpertWeights {
  readonly gateUp: number
  readonly gateUpBias: number | undefined
  readonly down: number
  readonly downBias: number | undefined
}

function declareExperts(
  context: BlockContext,
  name: string,
  spec: ExpertsSpec,
  { slots, width }: ExpertLayout,
): ExpertWeights {
  const { weights, hiddenSize } = context
  const matrices = (linears: ExpertMatrices['linears'], columns: number): ExpertMatrices => ({
    linears,
    width,
    slots,
    paddedRows: roundUp(columns, EXPERT_ROW_MULTIPLE),
  })
  const gateUps = matrices(
    spec.gates.map((gate, expert) => [gate, spec.ups[expert]!]),
    2 * width(0).padded,
  )
  const downs = matrices(
    spec.downs.map((down) => [down]),
    hiddenSize,
  )
  const declared = (plan: WeightPlan | undefined) => plan && declareWeight(context, plan)
  const base = `${name}.experts`
  return {
    gateUp: declareWeight(
      context,
      weights.expertColumns(`${base}.gate_up.weight`, gateUps, hiddenSize),
    ),
    gateUpBias: declared(weights.expertColumnBias(`${base}.gate_up.bias`, gateUps)),
    down: declareWeight(context, weights.expertRows(`${base}.down.weight`, downs, hiddenSize)),
    downBias: declared(weights.expertRowBias(`${base}.down.bias`, downs, hiddenSize)),
  }
}

function addExperts(
  context: BlockContext,
  name: string,
  { grouped, offsets }: DispatchBuffers,
  spec: ExpertsSpec,
  layout: ExpertLayout,
  matrices: ExpertWeights,
): number {
  const { builder, dtype, hiddenSize, world, tp } = context
  const width = layout.width(0).padded
  const rows = (world / tp) * builder.header.limits.maxTokens * spec.routing.choices
  const gateUp = builder.arena(`${name}.experts.gate_up`, dtype, [rows, 2 * width])
  const act = builder.arena(`${name}.experts.act`, dtype, [rows, width])
  const y = builder.arena(`${name}.experts.down`, dtype, [rows, hiddenSize])
  const { gateUp: weight, gateUpBias: bias } = matrices
  builder.add(
    `${name}.experts.gate_up`,
    groupedMatmul({ x: grouped, offsets, weight, bias, y: gateUp }),
  )
  builder.add(
    `${name}.experts.act`,
    groupedGlu({ gateUp, offsets, y: act }, { activation: spec.activation, ...spec.clamp }),
  )
  const { down, downBias } = matrices
  builder.add(
    `${name}.experts.down`,
    groupedMatmul({ x: act, offsets, weight: down, bias: downBias, y }),
  )
  return y
}
