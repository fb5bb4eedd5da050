/**
 * The blocks that decoders are made of: each adds its ops and weights to a program and returns the
 * buffer it leaves its result in. With several ranks, a block's result is this rank's term of a
 * sum; the decoder adds the collective.
 */

import { EngineError } from '../errors.ts'
import { allReduce } from '../ops/all-reduce.ts'
import { attention } from '../ops/attention.ts'
import { geluMul } from '../ops/gelu-mul.ts'
import { matmul } from '../ops/matmul.ts'
import { meanSquares } from '../ops/mean-squares.ts'
import { siluMul } from '../ops/silu-mul.ts'
import { splitRopeCache } from '../ops/split-rope-cache.ts'
import type { Slots } from '../parallel/balance/slots.ts'
import { headShare, type Share, widthShare } from '../parallel/sharding.ts'
import type { ProgramBuilder } from '../program/builder.ts'
import type { Dtype } from '../program/types.ts'
import type { KvPlan, WeightPlan } from '../weights/manifest.ts'
import type { GatedFeedForwardSpec, GroupedAttentionSpec, LinearSpec, NormSpec } from './spec.ts'
import type { SplitProjection, WeightPlanner } from './weights.ts'

/** Slots of the experts of each layer that has some, in order. */
export interface ExpertSlots {
  readonly slotsPerPosition: number
  /** By table: the expert in each slot when the weights are loaded. */
  readonly tables: readonly Slots[]
}

/** What every block needs to know. */
export interface BlockContext {
  readonly builder: ProgramBuilder
  readonly weights: WeightPlanner
  readonly kv: KvPlan[]
  readonly tp: number
  /** Ranks in all, and groups of them that the experts are spread over. */
  readonly world: number
  readonly ep: number
  /** Where experts lie, where that may change; else each rank has its own in order. */
  readonly expertSlots: ExpertSlots | undefined
  readonly hiddenSize: number
  /** Of activations, the residual stream included. */
  readonly dtype: Dtype
  readonly kvDtype: Dtype
  /** Rope tables [T, rotaryDim], by index in the spec. */
  readonly ropeTables: readonly { readonly buffer: number; readonly rotaryDim: number }[]
}

/** Declares the program's buffer of a planned weight. */
export function declareWeight(context: BlockContext, plan: WeightPlan): number {
  return context.builder.weight(plan.name, plan.dtype, plan.shape, plan.layout)
}

export function normWeight(
  context: BlockContext,
  name: string,
  norm: NormSpec,
  size: number,
): number {
  return declareWeight(context, context.weights.norm(name, norm, size))
}

export interface ProjectionOptions {
  /** Of the result; default: that of activations. */
  readonly dtype?: Dtype
  /** Columns of x; default: the hidden size. */
  readonly inFeatures?: number
}

/** x → projections of it side by side, [T, Σ width of a rank]. */
export function columnParallel(
  context: BlockContext,
  name: string,
  x: number,
  projections: readonly SplitProjection[],
  { dtype = context.dtype, inFeatures = context.hiddenSize }: ProjectionOptions = {},
): number {
  const { builder, weights } = context
  const plan = weights.columnParallel(`${name}.weight`, projections, inFeatures)
  const bias = weights.columnBias(`${name}.bias`, projections)
  const weight = declareWeight(context, plan)
  const biasBuffer = bias && declareWeight(context, bias)
  const y = builder.arena(name, dtype, ['T', plan.shape[0]!])
  builder.add(name, matmul({ x, weight, bias: biasBuffer, y }))
  return y
}

/** x [T, width of a rank] → this rank's term of the projection back to the hidden size. */
export function rowParallel(
  context: BlockContext,
  name: string,
  x: number,
  linear: LinearSpec,
  share: (rank: number) => Share,
): number {
  const { builder, weights, hiddenSize, tp } = context
  const plan = weights.rowParallel(`${name}.weight`, linear, hiddenSize, share)
  const bias = weights.rowBias(`${name}.bias`, linear, hiddenSize)
  const weight = declareWeight(context, plan)
  const biasBuffer = bias && declareWeight(context, bias)
  const y = builder.arena(name, context.dtype, ['T', hiddenSize])
  const biasOn = bias !== undefined && tp > 1 ? 'rank0' : undefined
  builder.add(name, matmul({ x, weight, bias: biasBuffer, y }, { bias_on: biasOn }))
  return y
}

/** A layer's cache: keys and values of this rank's heads, or latent vectors of `latentDim`. */
export function declareCache(
  { builder, kv, kvDtype }: BlockContext,
  name: string,
  size: { readonly kvHeads: number; readonly headDim: number } | { readonly latentDim: number },
): number {
  const { numBlocks, blockSize, numHostBlocks = 0 } = builder.header.limits
  const shape =
    'latentDim' in size
      ? [numBlocks, 1, 1, blockSize, size.latentDim]
      : [numBlocks, 2, size.kvHeads, blockSize, size.headDim]
  kv.push({
    name,
    dtype: kvDtype,
    shape,
    ...(numHostBlocks > 0 && { hostBlocks: numHostBlocks }),
  })
  return 'latentDim' in size
    ? builder.latentCache(name, kvDtype, size.latentDim)
    : builder.kv(name, kvDtype, size.kvHeads, size.headDim)
}

/** Means of the squares of all ranks' query heads and of all their key heads, [T, 2]. */
function headMeans(
  { builder, tp }: BlockContext,
  name: string,
  qkv: number,
  sizes: { readonly heads: number; readonly kv_heads: number; readonly head_dim: number },
): number {
  const label = `${name}.means`
  const y = builder.arena(tp > 1 ? `${label}.partial` : label, 'f32', ['T', 2])
  builder.add(label, meanSquares({ qkv, y }, sizes))
  if (tp === 1) return y
  const means = builder.arena(label, 'f32', ['T', 2])
  builder.add(`${label}.all_reduce`, allReduce({ x: y, y: means }))
  return means
}

/** Normalised hidden states x [T, hidden] → attention output, [T, hidden]. */
export function attentionBlock(
  context: BlockContext,
  name: string,
  x: number,
  spec: GroupedAttentionSpec,
): number {
  const { builder, weights, tp, dtype } = context
  const { heads, kvHeads, headDim } = spec
  const local = headShare(heads, kvHeads, tp, 0)
  const shareOf = (start: number, count: number): Share => ({
    start: start * headDim,
    count: count * headDim,
    padded: count * headDim,
  })
  const queryShare = (rank: number) => {
    const share = headShare(heads, kvHeads, tp, rank)
    return shareOf(share.firstHead, share.heads)
  }
  const keyShare = (rank: number) => {
    const share = headShare(heads, kvHeads, tp, rank)
    return shareOf(share.firstKvHead, share.kvHeads)
  }
  const qkv = columnParallel(context, `${name}.qkv`, x, [
    { linear: spec.query, share: queryShare },
    { linear: spec.key, share: keyShare },
    { linear: spec.value, share: keyShare },
  ])
  const kv = declareCache(context, `${name}.kv`, { kvHeads: local.kvHeads, headDim })
  const q = builder.arena(`${name}.q`, dtype, ['T', local.heads * headDim])
  const rope = context.ropeTables[spec.rope]!
  const sizes = { heads: local.heads, kv_heads: local.kvHeads, head_dim: headDim }
  const together = spec.normWidth === 'all'
  const headNorm = (
    suffix: string,
    norm: NormSpec | undefined,
    share: (rank: number) => Share,
  ): number | undefined => {
    if (norm === undefined) return undefined
    const weight = `${name}.${suffix}.weight`
    if (!together) return normWeight(context, weight, norm, headDim)
    return declareWeight(context, context.weights.splitNorm(weight, norm, share))
  }
  builder.add(
    `${name}.rope`,
    splitRopeCache(
      {
        qkv,
        table: rope.buffer,
        qNorm: headNorm('q_norm', spec.queryNorm, queryShare),
        kNorm: headNorm('k_norm', spec.keyNorm, keyShare),
        means: together ? headMeans(context, name, qkv, sizes) : undefined,
        q,
        kv,
      },
      { ...sizes, rotary_dim: rope.rotaryDim, eps: commonEps(spec.queryNorm, spec.keyNorm) },
    ),
  )
  const sinks =
    spec.sinks === undefined
      ? undefined
      : weights.splitVector(`${name}.sinks`, spec.sinks, (rank) => {
          const { firstHead, heads: count } = headShare(heads, kvHeads, tp, rank)
          return { start: firstHead, count, padded: count }
        })
  const o = builder.arena(`${name}.out`, dtype, ['T', local.heads * headDim])
  builder.add(
    `${name}.attention`,
    attention(
      { q, kv, sinks: sinks && declareWeight(context, sinks), o },
      { ...sizes, scale: spec.scale, softcap: spec.softcap, window: spec.window },
    ),
  )
  return rowParallel(context, `${name}.o`, o, spec.output, queryShare)
}

/** Normalised hidden states x [T, hidden] → feed-forward output, [T, hidden]. */
export function feedForwardBlock(
  context: BlockContext,
  name: string,
  x: number,
  spec: GatedFeedForwardSpec,
): number {
  const { builder, tp, dtype } = context
  const share = (rank: number) => widthShare(spec.intermediateSize, tp, rank)
  const gateUp = columnParallel(context, `${name}.gate_up`, x, [
    { linear: spec.gate, share },
    { linear: spec.up, share },
  ])
  const y = builder.arena(`${name}.act`, dtype, ['T', share(0).padded])
  const gated = spec.activation === 'silu' ? siluMul : geluMul
  builder.add(`${name}.act`, gated({ gateUp, y }))
  return rowParallel(context, `${name}.down`, y, spec.down, share)
}

/** The epsilon of norms that one op computes; they have one in every known model. */
export function commonEps(...norms: readonly (NormSpec | undefined)[]): number | undefined {
  const values = new Set(norms.flatMap((norm) => norm?.eps ?? []))
  if (values.size > 1) {
    throw new EngineError('ERR_UNSUPPORTED_MODEL', 'norms of one block have different epsilons')
  }
  return [...values][0]
}
