/**
 * From weight plans (which rectangles of which tensors a buffer holds on each rank) to the
 * WeightManifest that native code loads: tensor names become files and byte ranges.
 */

import { EngineError } from '../errors.ts'
import type { Dtype, WeightLayout } from '../program/types.ts'
import { quote, type SafetensorsDtype, type TensorIndex } from './safetensors.ts'
import type { WeightBuffer, WeightManifest, WeightPiece } from './types.ts'

/** A rectangle of a tensor, seen as a matrix (a vector is one row), copied into a buffer. */
export interface TensorSlice {
  readonly tensor: string
  readonly rowStart: number
  readonly rowCount: number
  readonly colStart: number
  readonly colCount: number
  readonly destRow: number
  readonly destCol: number
  /** Added to every element. */
  readonly add?: number
}

export interface WeightPlan {
  readonly name: string
  readonly dtype: Dtype
  /** On every rank: [n] or [rows, cols]. */
  readonly shape: readonly number[]
  readonly layout: WeightLayout
  /** What rank r holds; the rest of its buffer is zero. */
  readonly ranks: readonly (readonly TensorSlice[])[]
}

export interface KvPlan {
  readonly name: string
  readonly dtype: Dtype
  /** [blocks, 2, kvHeads, blockSize, headDim]. */
  readonly shape: readonly number[]
  /** Blocks of the same kind on the host, for swapping. Default 0. */
  readonly hostBlocks?: number
}

const LOADABLE: Readonly<Partial<Record<SafetensorsDtype, Dtype>>> = {
  F32: 'f32',
  F16: 'f16',
  BF16: 'bf16',
}

/** Block of an fp8 weight that shares a factor, in both directions. */
const SCALE_BLOCK = 128

/** The tensor of factors beside an fp8 weight, as DeepSeek-V3 and Qwen3 name it. */
export function scalesOf(tensor: string): string {
  return `${tensor}_scale_inv`
}

/** Whether `tensor` is fp8 e4m3 with float32 factors per block; ERR_TENSOR_SHAPE for other factors. */
export function isBlockScaled(index: TensorIndex, tensor: string): boolean {
  const info = index.tensors.get(tensor)
  const scales = index.tensors.get(scalesOf(tensor))
  if (info?.dtype !== 'F8_E4M3' || scales === undefined) return false
  const blocks = info.shape.map((size) => Math.ceil(size / SCALE_BLOCK))
  const fits =
    info.shape.length === 2 &&
    scales.dtype === 'F32' &&
    scales.shape.length === 2 &&
    scales.shape.every((size, i) => size === blocks[i])
  if (fits) return true
  throw new EngineError(
    'ERR_TENSOR_SHAPE',
    `${quote(scalesOf(tensor))} is ${scales.dtype} [${scales.shape}]; a weight of [${info.shape}] needs F32 [${blocks}]`,
  )
}

/** Dtype of a weight as the runtime names it, bf16 for fp8 with factors; ERR_UNSUPPORTED_MODEL for those it cannot read. */
export function loadableDtype(index: TensorIndex, tensor: string): Dtype {
  const info = index.tensors.get(tensor)
  if (info === undefined) {
    throw new EngineError('ERR_TENSOR_MISSING', `the checkpoint has no tensor ${quote(tensor)}`)
  }
  if (isBlockScaled(index, tensor)) return 'bf16'
  const dtype = LOADABLE[info.dtype]
  if (dtype === undefined) {
    throw new EngineError(
      'ERR_UNSUPPORTED_MODEL',
      `${quote(tensor)} in ${index.files[info.file]!.path} is ${info.dtype}; weights may be F32, F16, BF16, or F8_E4M3 with factors for blocks of ${SCALE_BLOCK}`,
    )
  }
  return dtype
}

/** Resolves every slice; lists only the files that are used. */
export function resolveManifest(
  index: TensorIndex,
  weights: readonly WeightPlan[],
  kv: readonly KvPlan[],
): WeightManifest {
  const files: { path: string; bytes: number }[] = []
  const fileNumber = new Map<number, number>()
  const pieceOf = ({ tensor, add, ...rectangle }: TensorSlice): WeightPiece => {
    const dtype = loadableDtype(index, tensor)
    const { file, offset, shape } = index.tensors.get(tensor)!
    const numberOf = (file: number) => {
      const known = fileNumber.get(file) ?? files.push(index.files[file]!) - 1
      fileNumber.set(file, known)
      return known
    }
    const scales = isBlockScaled(index, tensor) ? index.tensors.get(scalesOf(tensor)) : undefined
    const [rows, cols] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!]
    return {
      file: numberOf(file),
      offset,
      dtype: scales === undefined ? dtype : 'u8',
      rows,
      cols,
      ...rectangle,
      ...(add !== undefined && { add }),
      ...(scales && { e4m3Scales: { file: numberOf(scales.file), offset: scales.offset } }),
    }
  }
  const buffers: WeightBuffer[] = weights.map(({ ranks, ...plan }) => ({
    ...plan,
    space: 'weight',
    // An empty rectangle moves nothing: a rank whose share is padding alone.
    ranks: ranks.map((slices) =>
      slices.filter((slice) => slice.rowCount > 0 && slice.colCount > 0).map(pieceOf),
    ),
  }))
  const numRanks = weights[0]?.ranks.length ?? 0
  for (const plan of kv) {
    const ranks = Array.from({ length: numRanks }, () => [])
    buffers.push({ ...plan, space: 'kv', layout: 'plain', ranks })
  }
  return { version: 1, files, buffers }
}
