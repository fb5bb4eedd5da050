/**
 * Weights of a decoder: which tensors a spec needs and in what shapes, and how they are packed
 * and split over the ranks of an attention group. Column-parallel matrices split their rows (output
 * features), row-parallel ones their columns; norms and biases are float32 on every rank.
 */

import { EngineError } from '../errors.ts'
import { EMPTY, type Slots } from '../parallel/balance/slots.ts'
import type { Share } from '../parallel/sharding.ts'
import type { Dtype } from '../program/types.ts'
import type { TensorSlice, WeightPlan } from '../weights/manifest.ts'
import { quote, type TensorIndex } from '../weights/safetensors.ts'
import { storedTensor } from '../weights/stored.ts'
import type { ScaledFormat } from '../weights/types.ts'
import type {
  AttentionSpec,
  DecoderSpec,
  FeedForwardSpec,
  GatedFeedForwardSpec,
  LatentAttentionSpec,
  LinearSpec,
  NormSpec,
} from './spec.ts'

/** A projection and the rows of it (output features) that each rank computes. */
export interface SplitProjection {
  readonly linear: LinearSpec
  readonly share: (rank: number) => Share
}

/** The matrices of all experts, and what each rank of the world holds of them. */
export interface ExpertMatrices {
  /** Per expert: the projections that lie below each other. */
  readonly linears: readonly (readonly LinearSpec[])[]
  /** Columns of each expert's width that a rank computes. */
  readonly width: (rank: number) => Share
  /** Expert of each of a rank's slots, EMPTY where there is none. */
  readonly slots: (rank: number) => Slots
  /** Rows that an expert takes in the buffer; the rest of them is zero. */
  readonly paddedRows: number
}

/** One matrix [rows, cols] per head, cut from a tensor that has all heads below each other. */
export interface HeadMatrices {
  /** Heads of a rank. */
  readonly share: (rank: number) => Pick<Share, 'start' | 'count'>
  /** Rows of the tensor per head, and the first that is taken of them. */
  readonly stride: number
  readonly start: number
  readonly rows: number
  readonly cols: number
  /** Rows that a head takes in the buffer; the rest of them is zero. */
  readonly padded: number
  /** The tensor holds the matrix with rows and columns exchanged. */
  readonly transposed?: true
}

export interface WeightOptions {
  readonly tp: number
  readonly world: number
  /** Matmul weights keep their stored dtype unless this is bf16. */
  readonly precision: 'auto' | 'f32' | 'bf16'
}

/** What a rank of an attention group holds, or, as `ofRank`, what a rank of the world does. */
type RankSlices =
  | ((groupRank: number) => TensorSlice[])
  | { readonly ofRank: (rank: number) => TensorSlice[] }

function perRank(ofRank: (rank: number) => TensorSlice[]): RankSlices {
  return { ofRank }
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
  vectorOf(name: string, tensor: string, size: number): WeightPlan {
    return this.splitVector(name, tensor, () => ({ start: 0, count: size, padded: size }))
  }

  /** A rank's part of a vector, f32. */
  splitVector(name: string, tensor: string, share: (rank: number) => Share): WeightPlan {
    return this.vector(name, share(0).padded, (rank) => [vectorSlice(tensor, share(rank), 0)])
  }

  /** A rank's share of a norm that spans what the ranks split, f32. */
  splitNorm(name: string, norm: NormSpec, share: (rank: number) => Share): WeightPlan {
    return this.vector(name, share(0).padded, (rank) => {
      const slice = vectorSlice(norm.tensor, share(rank), 0)
      return [norm.offset === undefined ? slice : { ...slice, add: norm.offset }]
    })
  }

  /** [size] f32 on every rank. */
  norm(name: string, norm: NormSpec, size: number): WeightPlan {
    return this.splitNorm(name, norm, () => ({ start: 0, count: size, padded: size }))
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
          ...rowsOf(linear, share),
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
      stacked(projections, rank, ({ linear }, share, destCol) => biasOf(linear, share, destCol)),
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
        ...rowsOf(linear, { start: 0, count: outFeatures }),
        colStart: share(rank).start,
        colCount: share(rank).count,
        destRow: 0,
        destCol: 0,
      },
    ])
  }

  /** The whole bias on every rank; the op adds it on one. */
  rowBias(name: string, linear: LinearSpec, outFeatures: number): WeightPlan | undefined {
    const slice = biasOf(linear, { start: 0, count: outFeatures }, 0)
    return slice && this.vector(name, outFeatures, () => [slice])
  }

  /** Matrices of a rank's heads below each other: [heads · padded, cols]. */
  headMatrices(name: string, tensor: string, heads: HeadMatrices): WeightPlan {
    const { share, stride, start, rows, cols, padded, transposed } = heads
    return this.matrix(name, [share(0).count * padded, cols], [tensor], (rank) => {
      const { start: first, count } = share(rank)
      return Array.from({ length: count }, (_, local) => {
        const from = (first + local) * stride + start
        return {
          tensor,
          ...(transposed && { transposed }),
          rowStart: transposed ? 0 : from,
          rowCount: rows,
          colStart: transposed ? from : 0,
          colCount: cols,
          destRow: local * padded,
          destCol: 0,
        }
      })
    })
  }

  /** Column-parallel matrices of a rank's experts: [slots · paddedRows, inFeatures]. */
  expertColumns(name: string, matrices: ExpertMatrices, inFeatures: number): WeightPlan {
    const { linears, slots, paddedRows } = matrices
    const tensors = linears.flat().map(({ tensor }) => tensor)
    const rows = slots(0).length * paddedRows
    return this.matrix(
      name,
      [rows, inFeatures],
      tensors,
      perRank((rank) => {
        const width = matrices.width(rank)
        return localExperts(matrices, rank).flatMap(({ projections, destRow }) =>
          projections.map((linear, index) => ({
            ...rowsOf(linear, width),
            colStart: 0,
            colCount: inFeatures,
            destRow: destRow + index * width.padded,
            destCol: 0,
          })),
        )
      }),
    )
  }

  /** Row-parallel matrices of a rank's experts: [slots · paddedRows, columns of a rank]. */
  expertRows(name: string, matrices: ExpertMatrices, outFeatures: number): WeightPlan {
    const { linears, slots, paddedRows } = matrices
    const tensors = linears.flat().map(({ tensor }) => tensor)
    return this.matrix(
      name,
      [slots(0).length * paddedRows, matrices.width(0).padded],
      tensors,
      perRank((rank) => {
        const width = matrices.width(rank)
        return localExperts(matrices, rank).flatMap(({ projections, destRow }) =>
          projections.map((linear) => ({
            ...rowsOf(linear, { start: 0, count: outFeatures }),
            colStart: width.start,
            colCount: width.count,
            destRow,
            destCol: 0,
          })),
        )
      }),
    )
  }

  /** Biases of expertColumns, [slots · paddedRows], or undefined where none has one. */
  expertColumnBias(name: string, matrices: ExpertMatrices): WeightPlan | undefined {
    return this.expertBias(name, matrices, (projections, destCol, rank) => {
      const width = matrices.width(rank)
      return projections.map((linear, index) =>
        biasOf(linear, width, destCol + index * width.padded),
      )
    })
  }

  /** Biases of expertRows: of the ranks that share an expert's width, the first one adds them. */
  expertRowBias(
    name: string,
    matrices: ExpertMatrices,
    outFeatures: number,
  ): WeightPlan | undefined {
    return this.expertBias(name, matrices, (projections, destCol, rank) =>
      matrices.width(rank).start > 0
        ? []
        : projections.map((linear) => biasOf(linear, { start: 0, count: outFeatures }, destCol)),
    )
  }

  private expertBias(
    name: string,
    matrices: ExpertMatrices,
    slicesOf: (
      projections: readonly LinearSpec[],
      destCol: number,
      rank: number,
    ) => readonly (TensorSlice | undefined)[],
  ): WeightPlan | undefined {
    const { linears, slots, paddedRows } = matrices
    if (linears.flat().every(({ bias }) => bias === undefined)) return undefined
    const ofRank = perRank((rank) =>
      localExperts(matrices, rank).flatMap(({ projections, destRow }) =>
        slicesOf(projections, destRow, rank).filter((slice) => slice !== undefined),
      ),
    )
    return this.vector(name, slots(0).length * paddedRows, ofRank)
  }

  private matrix(
    name: string,
    shape: readonly number[],
    tensors: readonly string[],
    slicesOf: RankSlices,
  ): WeightPlan {
    const stored = new Set(tensors.map((tensor) => storedTensor(this.index, tensor).dtype))
    const [first, other] = stored
    // Sources of different dtypes meet in the widest.
    const dtype = this.options.precision === 'bf16' ? 'bf16' : other ? 'f32' : first!
    return this.plan({ name, dtype, shape, layout: 'matmul' }, slicesOf)
  }

  private vector(name: string, size: number, slicesOf: RankSlices): WeightPlan {
    return this.plan({ name, dtype: 'f32', shape: [size], layout: 'plain' }, slicesOf)
  }

  private plan(buffer: Omit<WeightPlan, 'ranks'>, slicesOf: RankSlices): WeightPlan {
    const { tp, world } = this.options
    const ofRank =
      typeof slicesOf === 'function' ? (rank: number) => slicesOf(rank % tp) : slicesOf.ofRank
    const ranks = Array.from({ length: world }, (_, rank) => ofRank(rank))
    const plan = { ...buffer, ranks }
    this.plans.push(plan)
    return plan
  }
}

/** A rank's experts with the rows where each begins. */
function localExperts({ linears, slots, paddedRows }: ExpertMatrices, rank: number) {
  return slots(rank).flatMap((expert, slot) =>
    expert === EMPTY ? [] : [{ projections: linears[expert]!, destRow: slot * paddedRows }],
  )
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

type Range = Pick<Share, 'start' | 'count'>

/** The tensor of a projection, and where in it rows of the projection are. */
function rowsOf(
  { tensor, plane, transposed, rows }: LinearSpec,
  { start, count }: Range,
): Pick<TensorSlice, 'tensor' | 'plane' | 'transposed' | 'rowStart' | 'rowCount' | 'rowStep'> {
  const { start: first = 0, step = 1 } = rows ?? {}
  return {
    tensor,
    ...(plane !== undefined && { plane }),
    ...(transposed && { transposed }),
    rowStart: first + start * step,
    rowCount: count,
    ...(step !== 1 && { rowStep: step }),
  }
}

/** The biases of rows of a projection. */
function biasOf(
  { bias, plane = 0, rows }: LinearSpec,
  { start, count }: Range,
  destCol: number,
): TensorSlice | undefined {
  if (bias === undefined) return undefined
  const { start: first = 0, step = 1 } = rows ?? {}
  const slice = vectorSlice(bias, { start: first + start * step, count }, destCol)
  return { ...slice, rowStart: plane, ...(step !== 1 && { colStep: step }) }
}

function vectorSlice(tensor: string, { start, count }: Range, destCol: number): TensorSlice {
  return { tensor, rowStart: 0, rowCount: 1, colStart: start, colCount: count, destRow: 0, destCol }
}

/** Every tensor that the spec uses, with the shape it must have. */
export function expectedTensors(spec: DecoderSpec): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>()
  const { hiddenSize: hidden, vocabSize } = spec
  const outputs = new Map<string, number>()
  const addLinear = (linear: LinearSpec, outFeatures: number, inputs: number) => {
    const { tensor, plane, transposed, rows, bias } = linear
    // Projections that share a tensor cover it together.
    const end = rows ? rows.start + (rows.count - 1) * (rows.step ?? 1) + 1 : outFeatures
    const total = Math.max(end, outputs.get(tensor) ?? 0)
    outputs.set(tensor, total)
    const planes = plane === undefined ? [] : [Math.max(plane + 1, shapes.get(tensor)?.[0] ?? 0)]
    shapes.set(tensor, [...planes, ...(transposed ? [inputs, total] : [total, inputs])])
    if (bias !== undefined) shapes.set(bias, [...planes, total])
  }
  const addNorm = (norm: NormSpec | undefined, size: number) => {
    if (norm !== undefined) shapes.set(norm.tensor, [size])
  }
  const addLatent = (attention: LatentAttentionSpec) => {
    const { heads, nopeDim, ropeDim, valueDim, latentDim, queryDown } = attention
    if (queryDown !== undefined) {
      addLinear(queryDown.linear, queryDown.size, hidden)
      addNorm(queryDown.norm, queryDown.size)
    }
    addLinear(attention.query, heads * (nopeDim + ropeDim), queryDown?.size ?? hidden)
    addLinear(attention.latent, latentDim + ropeDim, hidden)
    addNorm(attention.latentNorm, latentDim)
    addLinear({ tensor: attention.keyValue }, heads * (nopeDim + valueDim), latentDim)
    addLinear(attention.output, hidden, heads * valueDim)
  }
  const addAttention = (attention: AttentionSpec) => {
    if (attention.kind === 'latent') return addLatent(attention)
    const { headDim } = attention
    const [queries, keys] = [attention.heads * headDim, attention.kvHeads * headDim]
    addLinear(attention.query, queries, hidden)
    addLinear(attention.key, keys, hidden)
    addLinear(attention.value, keys, hidden)
    addLinear(attention.output, hidden, queries)
    const overAll = attention.normWidth === 'all'
    addNorm(attention.queryNorm, overAll ? queries : headDim)
    addNorm(attention.keyNorm, overAll ? keys : headDim)
    if (attention.sinks !== undefined) shapes.set(attention.sinks, [attention.heads])
  }
  const addGated = ({ gate, up, down, intermediateSize }: GatedFeedForwardSpec) => {
    addLinear(gate, intermediateSize, hidden)
    addLinear(up, intermediateSize, hidden)
    addLinear(down, hidden, intermediateSize)
  }
  const addFeedForward = (feedForward: FeedForwardSpec) => {
    if (feedForward.kind === 'gated') return addGated(feedForward)
    const { gates, ups, downs, intermediateSize, router, routing, shared } = feedForward
    addLinear(router, gates.length, hidden)
    if (routing.bias !== undefined) shapes.set(routing.bias, [gates.length])
    for (const linear of [...gates, ...ups]) addLinear(linear, intermediateSize, hidden)
    for (const linear of downs) addLinear(linear, hidden, intermediateSize)
    if (shared === undefined) return
    addGated(shared.feedForward)
    if (shared.gate !== undefined) addLinear(shared.gate, 1, hidden)
  }
  addLinear({ tensor: spec.embedding.tensor }, vocabSize, hidden)
  for (const layer of spec.layers) {
    const { attention, feedForward } = layer
    for (const norm of [layer.attentionNorm, layer.postAttentionNorm]) addNorm(norm, hidden)
    for (const norm of [layer.feedForwardNorm, layer.postFeedForwardNorm]) addNorm(norm, hidden)
    addAttention(attention)
    addFeedForward(feedForward)
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
  const scales = new Set<string>()
  for (const [tensor, shape] of expected) {
    const stored = storedTensor(index, tensor)
    if (stored.scales !== undefined) scales.add(stored.scales.tensor)
    if (stored.shape.length === shape.length && stored.shape.every((n, i) => n === shape[i])) {
      continue
    }
    throw new EngineError(
      'ERR_TENSOR_SHAPE',
      `${quote(tensor)} in ${index.files[stored.info.file]!.path} is [${stored.shape}]; the config says [${shape}]`,
    )
  }
  const unused = [...index.tensors.keys()].filter(
    (name) =>
      name.startsWith(spec.tensorPrefix) &&
      !expected.has(name) &&
      !scales.has(name) &&
      !IGNORED.test(name) &&
      !(spec.unusedPrefix !== undefined && name.startsWith(spec.unusedPrefix)),
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

/** Formats of the files that loading converts, other than plain floats. */
export function convertedFormats(spec: DecoderSpec, index: TensorIndex): ScaledFormat[] {
  const formats = [...expectedTensors(spec).keys()].flatMap(
    (tensor) => storedTensor(index, tensor).scales?.format ?? [],
  )
  return [...new Set(formats)].sort()
}

/** The dtype that most parameters are stored in. */
export function dominantDtype(spec: DecoderSpec, index: TensorIndex): Dtype {
  const counts = new Map<Dtype, number>()
  for (const [tensor, shape] of expectedTensors(spec)) {
    const { dtype } = storedTensor(index, tensor)
    const elements = shape.reduce((product, size) => product * size, 1)
    counts.set(dtype, (counts.get(dtype) ?? 0) + elements)
  }
  return [...counts].sort(([, a], [, b]) => b - a)[0]![0]
}
