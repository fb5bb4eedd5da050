/**
 * WeightManifest: what `loadWeights` must put where, resolved in TypeScript down to byte ranges
 * per rank, so that native code knows nothing about architectures or shard rules.
 * Mirrored by native/program/manifest.h.
 */

import type { Dtype, WeightLayout } from '../program/types.ts'

/** A rectangle of a source tensor copied into a buffer. Source rows are contiguous, row-major. */
export interface WeightPiece {
  /** Index into `files`. */
  readonly file: number
  /** Byte where the source tensor starts in the file. */
  readonly offset: number
  readonly dtype: Dtype
  /** Shape of the source tensor seen as a matrix (a vector is [1, n]). */
  readonly rows: number
  readonly cols: number
  /** Rectangle to take. */
  readonly rowStart: number
  readonly rowCount: number
  readonly colStart: number
  readonly colCount: number
  /** Where it lands in the destination matrix. */
  readonly destRow: number
  readonly destCol: number
  /** Added to every element after conversion (Gemma's 1 + w). */
  readonly add?: number
  /**
   * The source (dtype u8) holds 8-bit floats e4m3; every block of 128 × 128 has a float32 factor,
   * [ceil(rows / 128), ceil(cols / 128)] from byte `offset` of a file on.
   */
  readonly e4m3Scales?: { readonly file: number; readonly offset: number }
}

export interface WeightBuffer {
  readonly name: string
  readonly space: 'weight' | 'kv'
  readonly dtype: Dtype
  /** Local shape: weights [n] or [rows, cols]; kv [blocks, 2, kvHeads, blockSize, headDim]. */
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
