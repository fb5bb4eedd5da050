/**
 * WeightManifest: what `loadWeights` must put where, resolved in TypeScript down to byte ranges
 * per rank, so that native code knows nothing about architectures or shard rules.
 * Mirrored by native/program/manifest.h.
 */

import type { Dtype, WeightLayout } from '../program/types.ts'

/**
 * Formats with scales of their own. `e4m3`: 8-bit floats, a factor (f32 or bf16) for each block of
 * 128 × 128, [ceil(rows / 128), ceil(cols / 128)]. `mxfp4`: 4-bit floats e2m1, the first of a byte in its low
 * half, an 8-bit exponent e8m0 for each 32 of a row, [rows, cols / 32].
 */
export type ScaledFormat = 'e4m3' | 'mxfp4'
/** Of e4m3 the first two, of mxfp4 the last. */
export type ScaleDtype = 'f32' | 'bf16' | 'u8'

/** A rectangle of a source tensor copied into a buffer. */
export interface WeightPiece {
  /** Index into `files`. */
  readonly file: number
  /** Byte where the source tensor starts in the file. */
  readonly offset: number
  readonly dtype: Dtype
  /** Shape of the source tensor seen as a matrix (a vector is [1, n]), in elements. */
  readonly rows: number
  readonly cols: number
  /** It lies column by column, as [cols, rows]; row by row by default. */
  readonly transposed?: boolean
  /** Rectangle to take. */
  readonly rowStart: number
  readonly rowCount: number
  readonly colStart: number
  readonly colCount: number
  /** Every rowStep-th row and colStep-th column of the source from the start on. Default 1. */
  readonly rowStep?: number
  readonly colStep?: number
  /** Where it lands in the destination matrix. */
  readonly destRow: number
  readonly destCol: number
  /** Added to every element after conversion (Gemma's 1 + w). */
  readonly add?: number
  /** What else the source (dtype u8) needs to be read, from byte `offset` of a file on. */
  readonly scales?: {
    readonly format: ScaledFormat
    readonly dtype: ScaleDtype
    readonly file: number
    readonly offset: number
  }
}

export interface WeightBuffer {
  readonly name: string
  readonly space: 'weight' | 'kv'
  readonly dtype: Dtype
  /** Local shape: weights [n] or [rows, cols]; kv [blocks, 2 or 1, kvHeads, blockSize, headDim]. */
  readonly shape: readonly number[]
  readonly layout: WeightLayout
  /** kv: blocks of the same kind on the host, for swapping. Default 0. */
  readonly hostBlocks?: number
  /** ranks[r]: the pieces of rank r; what no piece covers is zero. Empty for kv. */
  readonly ranks: readonly (readonly WeightPiece[])[]
}

export interface WeightManifest {
  readonly version: 1
  /** Absolute paths; each is mapped read-only. `bytes` is the size seen when the header was read. */
  readonly files: readonly { readonly path: string; readonly bytes: number }[]
  readonly buffers: readonly WeightBuffer[]
}
