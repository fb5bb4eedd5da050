/**
 * StepShape: what a step asks for, as far as its cost depends on it: how many tokens each sequence
 * computes, and how long its context is afterwards. Sequences stand in row order.
 */

export interface StepShape {
  readonly numSeqs: number
  /** [≥ numSeqs] tokens of each sequence. */
  readonly counts: ArrayLike<number>
  /** [≥ numSeqs] context of each sequence after the step, tokens. */
  readonly lengths: ArrayLike<number>
  readonly numTokens: number
  /** Rows that reach the logits. */
  readonly numRows: number
}

/** Work of attention over some rows of a step. */
export interface AttentionWork {
  /** Σ over rows of sequences that compute one token: keys read. */
  readonly decodeKeys: number
  /** Σ over the other rows: keys each of them sees. */
  readonly prefillPairs: number
  /** Σ over the other sequences: keys of their context, read once. */
  readonly prefillKeys: number
  /** Most keys that one row of a prompt sees. */
  readonly longestRow: number
}

/** `numDecodes` sequences of one token with `context` keys, then prompts of `promptLength` tokens. */
export function mixedShape(options: {
  readonly numTokens: number
  readonly numDecodes: number
  readonly context: number
  readonly promptLength: number
}): StepShape {
  const { numTokens, context } = options
  const numDecodes = Math.min(options.numDecodes, numTokens)
  const counts = new Array<number>(numDecodes).fill(1)
  const lengths = new Array<number>(numDecodes).fill(Math.max(1, context))
  for (let left = numTokens - numDecodes; left > 0; left -= options.promptLength) {
    counts.push(Math.min(left, options.promptLength))
    lengths.push(counts.at(-1)!)
  }
  return { numSeqs: counts.length, counts, lengths, numTokens, numRows: counts.length }
}

/** Attention of rows [begin, end); a row sees at most `window` keys. */
export function attentionWork(
  shape: StepShape,
  begin: number,
  end: number,
  window = Infinity,
): AttentionWork {
  let decodeKeys = 0
  let prefillPairs = 0
  let prefillKeys = 0
  let longestRow = 0
  let row = 0
  for (let i = 0; i < shape.numSeqs && row < end; i++) {
    const count = shape.counts[i]!
    const from = Math.max(begin, row)
    const to = Math.min(end, row + count)
    if (from < to) {
      const first = shape.lengths[i]! - count + (from - row)
      const last = first + (to - from) - 1
      if (count === 1) decodeKeys += Math.min(window, last + 1)
      else {
        prefillPairs += pairsOf(first, last, window)
        prefillKeys += Math.min(last + 1, window + (last - first))
        longestRow = Math.max(longestRow, Math.min(last + 1, window))
      }
    }
    row += count
  }
  return { decodeKeys, prefillPairs, prefillKeys, longestRow }
}

/** Σ of min(window, position + 1) for positions first..last. */
function pairsOf(first: number, last: number, window: number): number {
  const grown = Math.min(last, window - 1)
  const triangle = grown >= first ? ((first + grown + 2) * (grown - first + 1)) / 2 : 0
  const full = last - Math.max(first, grown + 1) + 1
  return triangle + (full > 0 ? full * window : 0)
}
