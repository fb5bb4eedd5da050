/**
 * From a DecoderSpec to a serial program and the weights it needs:
 *
 *   residual = embed(tokens); y = norm(residual)
 *   per layer: residual += post?(attention(y)); y = norm(residual)
 *              residual += post?(feedForward(y)); y = norm(residual)
 *   logits = head(rows of y); sample
 *
 * where the norm after a block is the next block's. With several ranks an all_reduce follows the
 * embedding and every dense block, and an all_gather the logits; routed experts bring collectives of
 * their own. Passes do the rest (lib/program).
 */

import { addRmsNorm } from '../ops/add-rms-norm.ts'
import { allGather } from '../ops/all-gather.ts'
import { allReduce } from '../ops/all-reduce.ts'
import { embed } from '../ops/embed.ts'
import { gatherRows } from '../ops/gather-rows.ts'
import { logits } from '../ops/logits.ts'
import { rmsNorm } from '../ops/rms-norm.ts'
import { ropeTable } from '../ops/rope-table.ts'
import { sample } from '../ops/sample.ts'
import { vocabShare } from '../parallel/sharding.ts'
import { ProgramBuilder } from '../program/builder.ts'
import type { Dtype, Program, ProgramLimits } from '../program/types.ts'
import type { KvPlan, WeightPlan } from '../weights/manifest.ts'
import type { TensorIndex } from '../weights/safetensors.ts'
import {
  attentionBlock,
  type BlockContext,
  commonEps,
  declareWeight,
  type ExpertSlots,
  feedForwardBlock,
  normWeight,
} from './blocks.ts'
import { expertsBlock, planExpertSlots, withExpertLimits } from './experts.ts'
import { latentAttentionBlock } from './latent-attention.ts'
import { ropeFrequencies } from './rope.ts'
import type { DecoderSpec, NormSpec } from './spec.ts'
import type { ExpertPlacementOptions } from './types.ts'
import { WeightPlanner } from './weights.ts'

export interface DecoderLayout {
  readonly name: string
  readonly tp: number
  /** Groups of ranks that the experts are spread over; the world is the larger of both. Default 1. */
  readonly ep?: number
  readonly expertPlacement?: ExpertPlacementOptions | undefined
  readonly limits: ProgramLimits
  readonly dtype: Dtype
  readonly kvDtype: Dtype
  readonly precision: 'auto' | 'f32' | 'bf16'
  /** Longest context that will be served. */
  readonly maxModelLen: number
}

export interface DecoderProgram {
  /** Serial: one part, no waits, no offsets. */
  readonly program: Program
  readonly weights: readonly WeightPlan[]
  readonly kv: readonly KvPlan[]
  readonly expertSlots: ExpertSlots | undefined
}

export function buildDecoder(
  spec: DecoderSpec,
  index: TensorIndex,
  layout: DecoderLayout,
): DecoderProgram {
  const { name, tp, ep = 1, dtype } = layout
  const world = Math.max(tp, ep)
  const { hiddenSize, vocabSize } = spec
  const expertSlots = planExpertSlots(spec, ep, layout.expertPlacement)
  const limits = withExpertLimits(layout.limits, spec, ep, expertSlots)
  const builder = new ProgramBuilder({ name, world, tp, limits })
  const weights = new WeightPlanner(index, { ...layout, world })
  const context: BlockContext = {
    builder,
    weights,
    kv: [],
    tp,
    world,
    ep,
    expertSlots,
    hiddenSize,
    dtype,
    kvDtype: layout.kvDtype,
    ropeTables: addRopeTables(builder, spec, layout.maxModelLen),
  }
  const vocabRows = (tensor: string) => [
    { linear: { tensor }, share: (rank: number) => vocabShare(vocabSize, tp, rank) },
  ]
  const residual = builder.arena('residual', dtype, ['T', hiddenSize])

  const table = weights.columnParallel('embed.weight', vocabRows(spec.embedding.tensor), hiddenSize)
  const tableBuffer = declareWeight(context, table)
  const { scale } = spec.embedding
  const attrs = { scale: scale === undefined ? undefined : roundTo(dtype, scale) }
  if (tp === 1) {
    builder.add('embed', embed({ table: tableBuffer, x: residual }, attrs))
  } else {
    const x = builder.arena('embed.partial', dtype, ['T', hiddenSize])
    builder.add('embed', embed({ table: tableBuffer, x }, attrs))
    builder.add('embed.all_reduce', allReduce({ x, y: residual }))
  }

  const firstNorm = spec.layers[0]?.attentionNorm ?? spec.finalNorm
  let y = builder.arena('norm.out', dtype, ['T', hiddenSize])
  const firstWeight = normWeight(context, 'norm.weight', firstNorm, hiddenSize)
  builder.add('norm', rmsNorm({ x: residual, weight: firstWeight, y }, { eps: firstNorm.eps }))

  /**
   * Adds a block's output to the residual and normalises it for the next block. Unless it is
   * `whole` on every rank, it is a term of a sum over the group.
   */
  const addAndNormalise = (
    label: string,
    output: { readonly buffer: number; readonly whole: boolean },
    post: NormSpec | undefined,
    next: NormSpec,
  ): number => {
    let x = output.buffer
    if (tp > 1 && !output.whole) {
      x = builder.arena(`${label}.sum`, dtype, ['T', hiddenSize])
      builder.add(`${label}.all_reduce`, allReduce({ x: output.buffer, y: x }))
    }
    const postWeight = post && normWeight(context, `${label}.post_weight`, post, hiddenSize)
    const weight = normWeight(context, `${label}.weight`, next, hiddenSize)
    const out = builder.arena(`${label}.out`, dtype, ['T', hiddenSize])
    const eps = commonEps(post, next)!
    builder.add(label, addRmsNorm({ x, residual, weight, postWeight, y: out }, { eps }))
    return out
  }

  let numTables = 0
  spec.layers.forEach((layer, number) => {
    const base = `layers.${number}`
    const next = spec.layers[number + 1]?.attentionNorm ?? spec.finalNorm
    const attended =
      layer.attention.kind === 'latent'
        ? latentAttentionBlock(context, base, y, layer.attention)
        : attentionBlock(context, base, y, layer.attention)
    const { postAttentionNorm, feedForwardNorm, postFeedForwardNorm } = layer
    y = addAndNormalise(
      `${base}.norm1`,
      { buffer: attended, whole: false },
      postAttentionNorm,
      feedForwardNorm,
    )
    const { feedForward } = layer
    const fed =
      feedForward.kind === 'gated'
        ? { buffer: feedForwardBlock(context, base, y, feedForward), whole: false }
        : { buffer: expertsBlock(context, base, y, feedForward, numTables++), whole: true }
    y = addAndNormalise(`${base}.norm2`, fed, postFeedForwardNorm, next)
  })

  const rows = builder.arena('rows', dtype, ['R', hiddenSize])
  builder.add('rows', gatherRows({ x: y, y: rows }))
  const head =
    spec.head.tensor === spec.embedding.tensor
      ? tableBuffer
      : declareWeight(
          context,
          weights.columnParallel('head.weight', vocabRows(spec.head.tensor), hiddenSize),
        )
  const columns = vocabShare(vocabSize, tp, 0).padded
  const local = builder.arena(tp > 1 ? 'logits.local' : 'logits', 'f32', ['R', columns])
  builder.add('logits', logits({ x: rows, weight: head, l: local }, { softcap: spec.head.softcap }))
  let all = local
  if (tp > 1) {
    all = builder.arena('logits', 'f32', ['R', columns * tp])
    builder.add('logits.all_gather', allGather({ x: local, y: all }))
  }
  const tokens = builder.arena('tokens', 'i32', ['R'])
  builder.add('sample', sample({ logits: all, tokens }, { vocab_size: vocabSize }))
  return { program: builder.build(), weights: weights.plans, kv: context.kv, expertSlots }
}

function addRopeTables(
  builder: ProgramBuilder,
  spec: DecoderSpec,
  maxModelLen: number,
): BlockContext['ropeTables'] {
  return spec.ropes.map((rope, index) => {
    const name = spec.ropes.length === 1 ? 'rope' : `rope.${index}`
    const buffer = builder.arena(name, 'f32', ['T', rope.rotaryDim])
    const { invFreq, attentionFactor, dynamic } = ropeFrequencies(rope, maxModelLen)
    builder.add(
      name,
      ropeTable(
        { table: buffer },
        {
          inv_freq: invFreq,
          attention_factor: attentionFactor === 1 ? undefined : attentionFactor,
          dynamic_factor: dynamic?.factor,
          dynamic_base: dynamic?.base,
          dynamic_original: dynamic?.original,
        },
      ),
    )
    return { buffer, rotaryDim: rope.rotaryDim }
  })
}

/** Significant bits of a float. */
const PRECISION: Readonly<Partial<Record<Dtype, number>>> = { f32: 24, f16: 11, bf16: 8 }

/** `value` as a scalar of the activations' dtype: the embedding's scale is one in the reference. */
function roundTo(dtype: Dtype, value: number): number {
  const ulp = 2 ** (Math.floor(Math.log2(value)) + 1 - PRECISION[dtype]!)
  return Math.round(value / ulp) * ulp
}
