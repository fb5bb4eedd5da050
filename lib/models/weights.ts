/**
 * Weights of a decoder: which tensors a spec needs and in what shapes, and how they are packed
 * and split over the ranks of an attention group. Column-parallel matrices split their rows (output
 * features), row-parallel ones their columns; norms and biases are float32 on every rank.
 */

import { EngineError } from '../errors.ts'
import type { Share } from '../parallel/sharding.ts'
import type { Dtype } from '../program/types.ts'
import { loadableDtype, type TensorSlice, type WeightPlan } from '../weights/manifest.ts'
import { quote, type TensorIndex } from '../weights/safetensors.ts'
import type { DecoderSpec, LinearSpec, NormSpec } from './spec.ts'

/** A projection and the rows of it (output features) that each rank computes. */
export interface SplitProjection {
  readonly linear: LinearSpec
  readonly share: (rank: number) => Share
}

export interface WeightOptions {
  readonly tp: number
  /** Matmul weights keep their stored dtype unless this is bf16. */
  readonly precision: 'auto' | 'f32' | 'bf16'
}

/** Collects the plans of a model's weight buffers. */
export class WeightPlanner {
  readonly plans: WeightPlan[] = []
  private readonly index: TensorIndex
  private readonly options: WeightOptions

  constructor(index: TensorIndex, options: WeightOptions) {
    this.index = index
    this.options = options
  }

  /** [size] f32 on every rank. */
  norm(name: string, norm: NormSpec, size: number): WeightPlan {
    const slice = vectorSlice(norm.tensor, { start: 0, count: size }, 0)
    const whole = norm.offset === undefined ? slice : { ...slice, add: norm.offset }
    return this.vector(name, size, () => [whole])
  }

  /** Projections of one input below each other: [Σ rows of a rank, inFeatures]. */
  columnParallel(
    name: string,
    projections: readonly SplitProjection[],
    inFeatures: number,
  ): WeightPlan {
    return this.matrix(
      name,
      [sumOfPadded(projections), inFeatures],
      projections.map(({ linear }) => linear.tensor),
      (rank) =>
        stacked(projections, rank, ({ linear }, share, destRow) => ({
          tensor: linear.tensor,
          rowStart: (linear.rows?.start ?? 0) + share.start,
          rowCount: share.count,
          colStart: 0,
          colCount: inFeatures,
          destRow,
          destCol: 0,
        })),
    )
  }

  /** Their biases, or undefined where none has one. */
  columnBias(name: string, projections: readonly SplitProjection[]): WeightPlan | undefined {
    if (projections.every(({ linear }) => linear.bias === undefined)) return undefined
    return this.vector(name, sumOfPadded(projections), (rank) =>
      stacked(projections, rank, ({ linear }, share, destCol) =>
        linear.bias === undefined
          ? undefined
          : vectorSlice(
              linear.bias,
              { start: (linear.rows?.start ?? 0) + share.start, count: share.count },
              destCol,
            ),
      ),
    )
  }

  /** [outFeatures, columns of a rank]: each rank gives a term of the sum. */
  rowParallel(
    name: string,
    linear: LinearSpec,
    outFeatures: number,
    share: (rank: number) => Share,
  ): WeightPlan {
    return this.matrix(name, [outFeatures, share(0).padded], [linear.tensor], (rank) => [
      {
        tensor: linear.tensor,
        rowStart: linear.rows?.start ?? 0,
        rowCount: outFeatures,
        colStart: share(rank).start,
        colCount: share(rank).count,
        destRow: 0,
        destCol: 0,
      },
    ])
  }

  /** The whole bias on every rank; the op adds it on one. */
  rowBias(name: string, linear: LinearSpec, outFeatures: number): WeightPlan | undefined {
    const { bias, rows } = linear
    if (bias === undefined) return undefined
    const slice = vectorSlice(bias, { start: rows?.start ?? 0, count: outFeatures }, 0)
    return this.vector(name, outFeatures, () => [slice])
  }

  private matrix(
    name: string,
    shape: readonly number[],
    tensors: readonly string[],
    slicesOf: (rank: number) => TensorSlice[],
  ): WeightPlan {
    const stored = new Set(tensors.map((tensor) => loadableDtype(this.index, tensor)))
    const [first, other] = stored
    // Sources of different dtypes meet in the widest.
    const dtype = this.options.precision === 'bf16' ? 'bf16' : other ? 'f32' : first!
    return this.plan({ name, dtype, shape, layout: 'matmul' }, slicesOf)
  }

  private vector(
    name: string,
    size: number,
    slicesOf: (rank: number) => TensorSlice[],
  ): WeightPlan {
    return this.plan({ name, dtype: 'f32', shape: [size], layout: 'plain' }, slicesOf)
  }

  private plan(
    buffer: Omit<WeightPlan, 'ranks'>,
    slicesOf: (rank: number) => TensorSlice[],
  ): WeightPlan {
    const ranks = Array.from({ length: this.options.tp }, (_, rank) => slicesOf(rank))
    const plan = { ...buffer, ranks }
    this.plans.push(plan)
    return plan
  }
}

function sumOfPadded(projections: readonly SplitProjection[]): number {
  return projections.reduce((sum, { share }) => sum + share(0).padded, 0)
}

/** A slice per projection, each placed after the room of those before it. */
function stacked(
  projections: readonly SplitProjection[],
  rank: number,
  sliceOf: (projection: SplitProjection, share: Share, dest: number) => TensorSlice | undefined,
): TensorSlice[] {
  let dest = 0
  return projections.flatMap((projection) => {
    const share = projection.share(rank)
    const slice = sliceOf(projection, share, dest)
    dest += share.padded
    return slice ?? []
  })
}

function vectorSlice(
  tensor: string,
  { start, count }: Pick<Share, 'start' | 'count'>,
  destCol: number,
): TensorSlice {
  return { tensor, rowStart: 0, rowCount: 1, colStart: start, colCount: count, destRow: 0, destCol }
}

/** Every tensor that the spec uses, with the shape it must have. */
export function expectedTensors(spec: DecoderSpec): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>()
  const { hiddenSize: hidden, vocabSize } = spec
  const addLinear = ({ tensor, rows, bias }: LinearSpec, outFeatures: number, inputs: number) => {
    // Projections that share a tensor cover it together.
    const end = rows === undefined ? outFeatures : rows.start + rows.count
    const total = Math.max(end, shapes.get(tensor)?.[0] ?? 0)
    shapes.set(tensor, [total, inputs])
    if (bias !== undefined) shapes.set(bias, [total])
  }
  const addNorm = (norm: NormSpec | undefined, size: number) => {
    if (norm !== undefined) shapes.set(norm.tensor, [size])
  }
  addLinear({ tensor: spec.embedding.tensor }, vocabSize, hidden)
  for (const layer of spec.layers) {
    const { attention, feedForward } = layer
    for (const norm of [layer.attentionNorm, layer.postAttentionNorm]) addNorm(norm, hidden)
    for (const norm of [layer.feedForwardNorm, layer.postFeedForwardNorm]) addNorm(norm, hidden)
    const { headDim } = attention
    const [queries, keys] = [attention.heads * headDim, attention.kvHeads * headDim]
    addLinear(attention.query, queries, hidden)
    addLinear(attention.key, keys, hidden)
    addLinear(attention.value, keys, hidden)
    addLinear(attention.output, hidden, queries)
    for (const norm of [attention.queryNorm, attention.keyNorm]) addNorm(norm, headDim)
    addLinear(feedForward.gate, feedForward.intermediateSize, hidden)
    addLinear(feedForward.up, feedForward.intermediateSize, hidden)
    addLinear(feedForward.down, hidden, feedForward.intermediateSize)
  }
  addNorm(spec.finalNorm, hidden)
  addLinear({ tensor: spec.head.tensor }, vocabSize, hidden)
  return shapes
}

/** Tensors that checkpoints carry and no computation needs. */
const IGNORED =
  /\.(rotary_emb\.inv_freq|rotary_emb\.cos_cached|rotary_emb\.sin_cached|masked_bias)$/

/**
 * Checks the names, shapes and dtypes of every tensor the spec uses; ERR_TENSOR_MISSING,
 * ERR_TENSOR_SHAPE or ERR_UNSUPPORTED_MODEL name the first that does not fit. A tensor under the
 * decoder's prefix that nothing uses means that the architecture is not the one expected.
 */
export function checkTensors(spec: DecoderSpec, index: TensorIndex): void {
  const expected = expectedTensors(spec)
  for (const [tensor, shape] of expected) {
    loadableDtype(index, tensor)
    const info = index.tensors.get(tensor)!
    if (info.shape.length === shape.length && info.shape.every((size, i) => size === shape[i])) {
      continue
    }
    throw new EngineError(
      'ERR_TENSOR_SHAPE',
      `${quote(tensor)} in ${index.files[info.file]!.path} is [${info.shape}]; the config says [${shape}]`,
    )
  }
  const unused = [...index.tensors.keys()].filter(
    (name) => name.startsWith(spec.tensorPrefix) && !expected.has(name) && !IGNORED.test(name),
  )
  if (unused.length > 0) {
    throw new EngineError(
      'ERR_UNSUPPORTED_MODEL',
      `the checkpoint has ${unused.length} tensors that this architecture does not use, first ${quote(unused[0]!)}`,
    )
  }
}

/** Elements of the tensors that the spec uses. */
export function countParameters(spec: DecoderSpec): number {
  let count = 0
  for (const shape of expectedTensors(spec).values()) {
    count += shape.reduce((product, size) => product * size, 1)
  }
  return count
}

/** The dtype that most parameters are stored in. */
export function dominantDtype(spec: DecoderSpec, index: TensorIndex): Dtype {
  const counts = new Map<Dtype, number>()
  for (const [tensor, shape] of expectedTensors(spec)) {
    const dtype = loadableDtype(index, tensor)
    const elements = shape.reduce((product, size) => product * size, 1)
    counts.set(dtype, (counts.get(dtype) ?? 0) + elements)
  }
  return [...counts].sort(([, a], [, b]) => b - a)[0]![0]
}
