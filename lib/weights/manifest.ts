/**
 * From weight plans (which rectangles of which tensors a buffer holds on each rank) to the
 * WeightManifest that native code loads: tensor names become files and byte ranges.
 */

import type { Dtype, WeightLayout } from '../program/types.ts'
import type { TensorIndex } from './safetensors.ts'
import { MXFP4_BLOCK, storedTensor } from './stored.ts'
import type { WeightBuffer, WeightManifest, WeightPiece } from './types.ts'

/** A rectangle of a tensor, seen as a matrix (a vector is one row), copied into a buffer. */
export interface TensorSlice {
  readonly tensor: string
  /** Which of the matrices of a tensor of three dimensions. Default 0. */
  readonly plane?: number
  /** The tensor holds the matrix as [cols, rows]. */
  readonly transposed?: true
  readonly rowStart: number
  readonly rowCount: number
  readonly colStart: number
  readonly colCount: number
  /** Every so many rows or columns of the matrix. Default 1. */
  readonly rowStep?: number
  readonly colStep?: number
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
  /** [blocks, 2 or 1, kvHeads, blockSize, headDim]. */
  readonly shape: readonly number[]
  /** Blocks of the same kind on the host, for swapping. Default 0. */
  readonly hostBlocks?: number
}

/** Resolves every slice; lists only the files that are used. */
export function resolveManifest(
  index: TensorIndex,
  weights: readonly WeightPlan[],
  kv: readonly KvPlan[],
): WeightManifest {
  const files: { path: string; bytes: number }[] = []
  const fileNumber = new Map<number, number>()
  const numberOf = (file: number) => {
    const known = fileNumber.get(file) ?? files.push(index.files[file]!) - 1
    fileNumber.set(file, known)
    return known
  }
  const pieceOf = ({ tensor, plane = 0, add, ...slice }: TensorSlice): WeightPiece => {
    const { info, dtype, shape, bits, scales } = storedTensor(index, tensor)
    const [lines, lineLength] = [shape.at(-2) ?? 1, shape.at(-1)!]
    return {
      file: numberOf(info.file),
      offset: info.offset + (plane * lines * lineLength * bits) / 8,
      dtype: scales === undefined ? dtype : 'u8',
      rows: slice.transposed ? lineLength : lines,
      cols: slice.transposed ? lines : lineLength,
      ...slice,
      ...(add !== undefined && { add }),
      ...(scales && {
        scales: {
          format: scales.format,
          dtype: scales.dtype,
          file: numberOf(scales.info.file),
          // Of the scaled formats only MXFP4 has planes.
          offset: scales.info.offset + plane * lines * Math.ceil(lineLength / MXFP4_BLOCK),
        },
      }),
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
