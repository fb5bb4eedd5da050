/**
 * Arithmetic of tensor-parallel splits: which heads, columns and vocabulary rows a rank of an
 * attention group holds. Pure; the same on every rank.
 */

/** [start, start + count) of a whole, and how much room the rank's share is given. */
export interface Share {
  readonly start: number
  /** Elements that exist; the rest of `padded` is zero. */
  readonly count: number
  readonly padded: number
}

/** Vocabulary rows per rank are a multiple of this. */
const VOCAB_MULTIPLE = 16
/** Widths that do not split evenly are padded to a multiple of this per rank. */
const WIDTH_MULTIPLE = 8

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple
}

/** Equal blocks of `padded` elements; the last ranks may hold less, or nothing but zeros. */
function blockShare(total: number, padded: number, rank: number): Share {
  const start = Math.min(rank * padded, total)
  return { start, count: Math.min(padded, total - start), padded }
}

/** Vocabulary rows of a rank: [rank · padded, (rank + 1) · padded), cut at the vocabulary's end. */
export function vocabShare(vocabSize: number, tp: number, rank: number): Share {
  return blockShare(vocabSize, roundUp(vocabSize, VOCAB_MULTIPLE * tp) / tp, rank)
}

/** Columns of an intermediate width that a rank computes. */
export function widthShare(width: number, tp: number, rank: number): Share {
  const padded = width % tp === 0 ? width / tp : roundUp(Math.ceil(width / tp), WIDTH_MULTIPLE)
  return blockShare(width, padded, rank)
}

/** Heads split evenly, and KV heads split evenly or are copied to several ranks evenly. */
export function canSplitHeads(heads: number, kvHeads: number, tp: number): boolean {
  return heads % tp === 0 && (kvHeads % tp === 0 || tp % kvHeads === 0)
}

export interface HeadShare {
  readonly firstHead: number
  readonly heads: number
  readonly firstKvHead: number
  /** At least 1: with more ranks than KV heads, neighbouring ranks hold the same one. */
  readonly kvHeads: number
}

/** Heads of a rank; needs canSplitHeads. */
export function headShare(heads: number, kvHeads: number, tp: number, rank: number): HeadShare {
  const local = heads / tp
  return {
    firstHead: rank * local,
    heads: local,
    firstKvHead: Math.floor((rank * kvHeads) / tp),
    kvHeads: Math.max(1, kvHeads / tp),
  }
}
