/**
 * Step encoding: one Int32Array in, one Int32Array out. The layout is mirrored by
 * native/program/step.h; test/step.test.ts compares the constants. Words are int32; a float is
 * bit-cast, a u64 is two words (low, high).
 *
 * Envelope: header [version, stepId, flags, bucket, numSections], then numSections × [kind, group,
 * offset, length] (offset and length in words from the start), then the sections. Sections
 * carry the number of the attention group they belong to (0 when tp = world).
 */

export const STEP_VERSION = 1
export const STEP_HEADER_WORDS = 5
export const STEP_SECTION_WORDS = 4

/** Kinds of a step's sections. */
export const STEP_SECTION = {
  /** [parts + 1] first row of each part, then the number of tokens; ascending. */
  partBounds: 1,
  /** [T] token id, or -(slot + 1): the last token sampled in that slot. */
  tokens: 2,
  /** [T] position in its sequence. */
  positions: 3,
  /** [T] KV slot = block · blockSize + offset; -1: padding, writes no KV. */
  kvSlots: 4,
  /** [S + 1] first row of each sequence, then the number of tokens. */
  seqStarts: 5,
  /** [S] context length of each sequence after this step, tokens. */
  seqLens: 6,
  /** [S · width] KV blocks of each sequence, padded with -1; width = length / S. */
  blockTables: 7,
  /** [R · 4] rows that reach the logits: {token row, slot or -1, target token or -1, flags ROW_FLAG}. */
  rows: 8,
  /** [n · SLOT_PARAM_WORDS] sampling state of slots, sent at admission and when changed. */
  slotParams: 9,
  /** Repeated {slot, count, token…}: tokens that penalties see before the first sampled one. */
  slotHistory: 10,
  /** Repeated {slot, count, (token, f32 bias)…}: logit bias. */
  slotBias: 11,
  /** [n · 2] {source block, destination block}: KV copies done before the step. */
  blockCopies: 12,
} as const

/** Flags of a `rows` entry. Bits 8..15: number of top log-probabilities to return (0..20). */
export const ROW_FLAG = {
  /** Sample a token into the slot. */
  sample: 1,
  /** Return the whole row of logits. */
  logits: 2,
  /** Return the log-probability of the sampled (or target) token. */
  logprob: 4,
} as const

/**
 * Words of one `slotParams` entry: {slot, seed low, seed high, temperature f32, topK (0: off), topP f32,
 * minP f32, repetition f32, presence f32, frequency f32, flags (0), reserved (0)}. Sending
 * it also clears the slot's penalty counts and bias.
 */
export const SLOT_PARAM_WORDS = 12

/** Kinds of a result's sections (same envelope). */
export const RESULT_SECTION = {
  /** [R] sampled token, or -1 for a row that did not sample. */
  sampled: 1,
  /** [R] f32 log-probability of the sampled or target token; NaN where not asked. */
  logprobs: 2,
  /** Repeated {row index into rows, n, (token, f32 logprob)…}: the n most likely, best first. */
  topLogprobs: 3,
  /** Repeated {row index, vocabSize × f32}: logits of rows that asked for them. */
  logits: 4,
  /** {queue µs, run µs}: waiting for earlier steps, and running. */
  timings: 5,
} as const
