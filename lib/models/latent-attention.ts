/**
 * The block of multi-head latent attention in its absorbed form: a head's query meets the latent
 * vectors through its key matrix, which is applied to the query instead of to every vector; what
 * attention makes of the latent vectors becomes the head's values afterwards. So the cache holds one
 * vector a token, on every rank; ranks split the heads.
 */

import { HEAD_ROW_MULTIPLE, headMatmul } from '../ops/head-matmul.ts'
import { mlaAttention } from '../ops/mla-attention.ts'
import { mlaSplitRopeCache } from '../ops/mla-split-rope-cache.ts'
import { rmsNorm } from '../ops/rms-norm.ts'
import { roundUp, type Share } from '../parallel/sharding.ts'
import {
  type BlockContext,
  columnParallel,
  declareCache,
  declareWeight,
  normWeight,
  rowParallel,
} from './blocks.ts'
import type { LatentAttentionSpec, LinearSpec } from './spec.ts'
import type { HeadMatrices } from './weights.ts'

/** Normalised hidden states x [T, hidden] → attention output, [T, hidden]. */
export function latentAttentionBlock(
  context: BlockContext,
  name: string,
  x: number,
  spec: LatentAttentionSpec,
): number {
  const { builder, dtype } = context
  const { latentDim, ropeDim, scale } = spec
  const heads = spec.heads / context.tp
  const activation = (suffix: string, columns: number) =>
    builder.arena(`${name}.${suffix}`, dtype, ['T', columns])

  const q = queries(context, name, x, spec)
  const latent = whole(context, `${name}.latent`, x, spec.latent, latentDim + ropeDim)
  const kv = declareCache(context, `${name}.kv`, { latentDim: latentDim + ropeDim })
  const qRope = activation('q_rope', heads * ropeDim)
  const sizes = { heads, latent_dim: latentDim, rope_dim: ropeDim }
  builder.add(
    `${name}.rope`,
    mlaSplitRopeCache(
      {
        q,
        latent,
        table: context.ropeTables[spec.rope]!.buffer,
        norm: normWeight(context, `${name}.latent_norm.weight`, spec.latentNorm, latentDim),
        qRope,
        kv,
      },
      { ...sizes, eps: spec.latentNorm.eps, interleaved: spec.interleaved || undefined },
    ),
  )
  const qLatent = perHead(context, `${name}.q_latent`, q, spec, {
    start: 0,
    rows: latentDim,
    cols: spec.nopeDim,
    transposed: true,
  })
  const attended = activation('attended', heads * latentDim)
  builder.add(
    `${name}.attention`,
    mlaAttention({ qLatent, qRope, kv, o: attended }, { ...sizes, scale }),
  )
  const values = perHead(context, `${name}.out`, attended, spec, {
    start: spec.nopeDim,
    rows: spec.valueDim,
    cols: latentDim,
  })
  return rowParallel(
    context,
    `${name}.o`,
    values,
    spec.output,
    columnsOfHeads(context, spec, spec.valueDim),
  )
}

/** Columns of a rank where every head has `columns`. */
function columnsOfHeads({ tp }: BlockContext, { heads }: LatentAttentionSpec, columns: number) {
  const count = (heads / tp) * columns
  return (rank: number): Share => ({ start: rank * count, count, padded: count })
}

/** A projection that every rank computes in full. */
function whole(context: BlockContext, name: string, x: number, linear: LinearSpec, size: number) {
  const share = () => ({ start: 0, count: size, padded: size })
  return columnParallel(context, name, x, [{ linear, share }])
}

/** [T, heads of a rank · (nopeDim + ropeDim)]. */
function queries(
  context: BlockContext,
  name: string,
  x: number,
  spec: LatentAttentionSpec,
): number {
  const { builder, dtype } = context
  const { query, queryDown, nopeDim, ropeDim } = spec
  const share = columnsOfHeads(context, spec, nopeDim + ropeDim)
  if (queryDown === undefined)
    return columnParallel(context, `${name}.q`, x, [{ linear: query, share }])
  const { linear, norm, size } = queryDown
  const down = whole(context, `${name}.q_down`, x, linear, size)
  const weight = normWeight(context, `${name}.q_norm.weight`, norm, size)
  const y = builder.arena(`${name}.q_norm`, dtype, ['T', size])
  builder.add(`${name}.q_norm`, rmsNorm({ x: down, weight, y }, { eps: norm.eps }))
  return columnParallel(context, `${name}.q`, y, [{ linear: query, share }], { inFeatures: size })
}

/** x [T, heads · columns] times a matrix of each head, cut from the keys and values' tensor. */
function perHead(
  context: BlockContext,
  name: string,
  x: number,
  spec: LatentAttentionSpec,
  cut: Pick<HeadMatrices, 'start' | 'rows' | 'cols' | 'transposed'>,
): number {
  const { builder, weights, dtype, tp } = context
  const heads = spec.heads / tp
  const plan = weights.headMatrices(`${name}.weight`, spec.keyValue, {
    ...cut,
    share: (rank) => ({ start: rank * heads, count: heads }),
    stride: spec.nopeDim + spec.valueDim,
    padded: roundUp(cut.rows, HEAD_ROW_MULTIPLE),
  })
  const y = builder.arena(name, dtype, ['T', heads * cut.rows])
  builder.add(name, headMatmul({ x, weight: declareWeight(context, plan), y }, { heads }))
  return y
}
