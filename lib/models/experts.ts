/**
 * The block of routed experts: route, dispatch, gate and up, activation, down, combine, and the
 * shared expert beside them. Its result is whole on every rank: the combine is the collective.
 */

import { EXPERT_ROW_MULTIPLE } from '../ops/experts.ts'
import { groupedGlu } from '../ops/grouped-glu.ts'
import { groupedMatmul } from '../ops/grouped-matmul.ts'
import { moeCombine } from '../ops/moe-combine.ts'
import { type DispatchBuffers, moeDispatch } from '../ops/moe-dispatch.ts'
import { moeRoute } from '../ops/moe-route.ts'
import { expertShare, roundUp } from '../parallel/sharding.ts'
import { type BlockContext, columnParallel, declareWeight, feedForwardBlock } from './blocks.ts'
import type { ExpertsSpec, LinearSpec } from './spec.ts'
import type { ExpertMatrices } from './weights.ts'

/** Normalised hidden states x [T, hidden] → the experts' output, [T, hidden], on every rank. */
export function expertsBlock(
  context: BlockContext,
  name: string,
  x: number,
  spec: ExpertsSpec,
): number {
  const { builder, dtype, hiddenSize, ep } = context
  const attrs = { experts: spec.gates.length, ep }
  const { ids, weights } = addRoute(context, name, x, spec)
  const buffers = declareDispatch(context, name, spec)
  builder.add(`${name}.dispatch`, moeDispatch({ x, ids, ...buffers }, attrs))
  const expertOut = addExperts(context, name, buffers, spec)
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
  return columnParallel(context, name, x, [{ linear, share }], 'f32')
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

/** Buffers of the most that a rank can receive: every choice of every token of every group. */
function declareDispatch(context: BlockContext, name: string, spec: ExpertsSpec): DispatchBuffers {
  const { builder, dtype, hiddenSize, world, tp, ep } = context
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
    offsets: buffer('offsets', 'i32', [Math.ceil(spec.gates.length / ep) + 1]),
  }
}

function addExperts(
  context: BlockContext,
  name: string,
  { grouped, offsets }: DispatchBuffers,
  spec: ExpertsSpec,
): number {
  const { builder, weights, dtype, hiddenSize, world, tp, ep } = context
  const share = (rank: number) =>
    expertShare(spec.gates.length, spec.intermediateSize, { world, ep, rank })
  const width = share(0).width.padded
  const rows = (world / tp) * builder.header.limits.maxTokens * spec.routing.choices
  const matrices = (linears: ExpertMatrices['linears'], columns: number): ExpertMatrices => ({
    linears,
    share,
    paddedRows: roundUp(columns, EXPERT_ROW_MULTIPLE),
  })
  const gateUpWeight = weights.expertColumns(
    `${name}.experts.gate_up.weight`,
    matrices(
      spec.gates.map((gate, expert) => [gate, spec.ups[expert]!]),
      2 * width,
    ),
    hiddenSize,
  )
  const downWeight = weights.expertRows(
    `${name}.experts.down.weight`,
    matrices(
      spec.downs.map((down) => [down]),
      hiddenSize,
    ),
    hiddenSize,
  )
  const gateUp = builder.arena(`${name}.experts.gate_up`, dtype, [rows, 2 * width])
  const act = builder.arena(`${name}.experts.act`, dtype, [rows, width])
  const y = builder.arena(`${name}.experts.down`, dtype, [rows, hiddenSize])
  builder.add(
    `${name}.experts.gate_up`,
    groupedMatmul({
      x: grouped,
      offsets,
      weight: declareWeight(context, gateUpWeight),
      y: gateUp,
    }),
  )
  builder.add(
    `${name}.experts.act`,
    groupedGlu({ gateUp, offsets, y: act }, { activation: spec.activation }),
  )
  builder.add(
    `${name}.experts.down`,
    groupedMatmul({ x: act, offsets, weight: declareWeight(context, downWeight), y }),
  )
  return y
}
