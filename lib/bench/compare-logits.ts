/**
 * Are two engines computing the same model? Logits of the same tokens are compared position by
 * position. Both round activations to bf16 at places of their own, so values agree to a percent or
 * so; the most likely token must be the same wherever the other engine's lead is clear of that.
 */

export interface LogitsComparison {
  readonly positions: number
  /** Positions with the same most likely token. */
  readonly sameTop: number
  /** ‖ours − theirs‖ / ‖theirs‖ over all positions. */
  readonly relativeError: number
  readonly maxAbsoluteError: number
  /** Positions that count as different; see the file's first paragraph. */
  readonly wrong: number
}

/** Above this the two do not run the same model, however the tokens fall. */
const RELATIVE_ERROR_BOUND = 0.05
/** A lead of this many times the position's RMS difference is not undone by rounding. */
const CLEAR_LEAD = 8

/** Indices of the largest and the second largest value. */
function topTwo(row: Float32Array): [number, number] {
  let first = 0
  let second = -1
  for (let i = 1; i < row.length; i++) {
    if (row[i]! > row[first]!) {
      second = first
      first = i
    } else if (second < 0 || row[i]! > row[second]!) second = i
  }
  return [first, second]
}

/** Both [positions, vocab], row-major. A NaN anywhere makes its position wrong. */
export function compareLogits(
  ours: Float32Array,
  theirs: Float32Array,
  vocab: number,
): LogitsComparison {
  const positions = Math.floor(theirs.length / vocab)
  let sameTop = 0
  let differing = 0
  let squaredError = 0
  let squaredNorm = 0
  let maxAbsoluteError = 0
  for (let position = 0; position < positions; position++) {
    const a = ours.subarray(position * vocab, (position + 1) * vocab)
    const b = theirs.subarray(position * vocab, (position + 1) * vocab)
    let rowError = 0
    for (let i = 0; i < vocab; i++) {
      const difference = a[i]! - b[i]!
      rowError += difference * difference
      squaredNorm += b[i]! * b[i]!
      maxAbsoluteError = Math.max(maxAbsoluteError, Math.abs(difference))
    }
    squaredError += rowError
    const [top, next] = topTwo(b)
    const same = topTwo(a)[0] === top
    const lead = b[top]! - b[next]!
    if (same) sameTop++
    if (Number.isNaN(rowError) || (!same && lead > CLEAR_LEAD * Math.sqrt(rowError / vocab)))
      differing++
  }
  const relativeError = Math.sqrt(squaredError / squaredNorm)
  const alike = ours.length === theirs.length && relativeError <= RELATIVE_ERROR_BOUND
  return {
    positions,
    sameTop,
    relativeError,
    maxAbsoluteError,
    wrong: alike ? differing : positions,
  }
}
