/**
 * Step encoding: one Int32Array in, one Int32Array out. The layout is mirrored by
 * native/program/step.h; test/step.test.ts compares the constants. Words are int32; a float is
 * bit-cast, a u64 is two words (low, high).
 *
 * Envelope: header [version, stepId, flags, bucket, numSections], then numSections × [kind, group,
 * offset, length] (offset and length in words from the start), then the sections. Sections
 * carry the number of the attention group they belong to (0 when tp = world).
 */

import { EngineError } from '../errors.ts'
import type { StepPlan } from '../scheduler/plan.ts'
import type { PartLayout } from './step-programs.ts'
import { floatOfWord, WordList } from './words.ts'

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
  /**
   * [n · 2] {source block, destination block}: KV copies done before the step, in any order. Each
   * destination stands once, and no source is also a destination.
   */
  blockCopies: 12,
  /**
   * [n · 3] {device block, host block, count}: runs of KV blocks copied to the host before anything
   * else. No host block is the destination of two runs.
   */
  swapOut: 13,
  /** [n · 3] the same, copied from the host after `swapOut` and before `blockCopies`. */
  swapIn: 14,
  /**
   * Repeated {slot, count, word…}: which tokens the slot may sample from now on, bit t of word t / 32
   * for token t. count: ceil(vocabSize / 32), or 0: all of them again.
   */
  allowedTokens: 15,
  /**
   * {hash, (table, [experts · EXPERT_WAYS] slots)…}: which slots serve the experts of a layer from now
   * on, on all ranks; stands in group 0. The hash is that of all tables afterwards, for ranks to compare.
   */
  expertTables: 16,
  /**
   * [n · 3] {table, source slot, destination slot}: weights of experts that are copied from rank to
   * rank before the tables change; stands in group 0. A destination stands once and is no source.
   */
  expertCopies: 17,
} as const

/** Flags of a step. */
export const STEP_FLAG = {
  /** Return how often each expert was chosen since this was last asked. */
  expertCounts: 1,
  /** Return the experts that each token chooses in this step. */
  expertChoices: 2,
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
 * it also clears the slot's penalty counts, bias and mask.
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
  /** [tables · experts] choices of each expert, when asked. */
  expertCounts: 6,
  /** [tables · T · choices] experts of each token, -1: none; when asked. */
  expertChoices: 7,
} as const

/** Words of a section; a WordList, or the scheduler's BlockRuns. */
type Words = Pick<WordList, 'length' | 'copyTo'>

/** What a step changes of the places of experts, and STEP_FLAGs. */
export interface ExpertWords {
  readonly flags: number
  readonly tables: WordList
  readonly copies: WordList
}

const NO_EXPERTS: ExpertWords = { flags: 0, tables: new WordList(), copies: new WordList() }

/** What a step changes in the device's sampling slots; see STEP_SECTION for the layout. */
export interface SlotUpdates {
  readonly params: WordList
  readonly history: WordList
  readonly bias: WordList
  readonly allowed: WordList
}

export function createSlotUpdates(): SlotUpdates {
  return {
    params: new WordList(),
    history: new WordList(),
    bias: new WordList(),
    allowed: new WordList(),
  }
}

/** What a step computes in one attention group. */
export interface GroupStep {
  readonly plan: StepPlan
  readonly updates: SlotUpdates
  readonly group: number
}

/** Sections that a step has only where they say something. */
function listsOf({ swapOuts, swapIns }: StepPlan, updates: SlotUpdates): readonly Words[] {
  return [
    ...[updates.params, updates.history, updates.bias, updates.allowed],
    ...[swapOuts, swapIns],
  ]
}

function countFilled(lists: readonly Words[]): number {
  return lists.filter((list) => list.length > 0).length
}

function sumOfLengths(lists: readonly Words[]): number {
  return lists.reduce((sum, list) => sum + list.length, 0)
}

/** Blocks of the longest table. */
function widthOf(plan: StepPlan): number {
  let width = 0
  for (let i = 0; i < plan.numSeqs; i++) width = Math.max(width, plan.seqs[i].numBlocks)
  return width
}

/**
 * Encodes plans into step words. Buffers are reused in turn: the words of a step stay as they are
 * until `numBuffers` - 1 further steps have been encoded.
 */
export class StepEncoder {
  readonly #blockSize: number
  readonly #buffers: Int32Array[]
  #turn = 0
  // Of the step being encoded: its words, the next section's table entry and offset.
  #words: Int32Array = new Int32Array(0)
  #entry = 0
  #offset = 0

  constructor(options: { blockSize: number; numBuffers: number }) {
    this.#blockSize = options.blockSize
    this.#buffers = Array.from({ length: options.numBuffers }, () => new Int32Array(1024))
  }

  /** A step of one group; see encodeGroups. */
  encode(
    plan: StepPlan,
    updates: SlotUpdates,
    layout: PartLayout,
    experts: ExpertWords = NO_EXPERTS,
  ): Int32Array {
    return this.encodeGroups(plan.id, [{ plan, updates, group: 0 }], layout, experts)
  }

  /** Groups without a plan have no sections. */
  encodeGroups(
    id: number,
    groups: readonly GroupStep[],
    layout: PartLayout,
    experts: ExpertWords = NO_EXPERTS,
  ): Int32Array {
    const ofAll = [experts.tables, experts.copies]
    let numSections = countFilled(ofAll)
    let numWords = sumOfLengths(ofAll)
    for (const { plan, updates } of groups) {
      const lists = listsOf(plan, updates)
      numSections += 8 + countFilled(lists) + (plan.numCopies > 0 ? 1 : 0)
      numWords +=
        layout.parts +
        1 +
        3 * plan.numTokens +
        (2 + widthOf(plan)) * plan.numSeqs +
        1 +
        4 * plan.numRows +
        sumOfLengths(lists) +
        2 * plan.numCopies
    }
    const header = STEP_HEADER_WORDS + numSections * STEP_SECTION_WORDS
    const words = this.#nextBuffer(header + numWords)
    words[0] = STEP_VERSION
    words[1] = id | 0
    words[2] = experts.flags
    words[3] = 0 // bucket
    words[4] = numSections
    this.#words = words
    this.#entry = STEP_HEADER_WORDS
    this.#offset = header
    for (const { plan, updates, group } of groups) this.#encodeGroup(plan, updates, layout, group)
    this.#encodeList(STEP_SECTION.expertTables, experts.tables, 0)
    this.#encodeList(STEP_SECTION.expertCopies, experts.copies, 0)
    return words.subarray(0, header + numWords)
  }

  #encodeGroup(plan: StepPlan, updates: SlotUpdates, layout: PartLayout, group: number): void {
    const bounds = this.#section(STEP_SECTION.partBounds, group, layout.parts + 1)
    for (let i = 0; i <= layout.parts; i++)
      this.#words[bounds + i] = layout.bound(plan.numTokens, i)
    this.#encodeTokens(plan, group)
    this.#encodeSequences(plan, widthOf(plan), group)
    this.#encodeRows(plan, group)
    this.#encodeList(STEP_SECTION.slotParams, updates.params, group)
    this.#encodeList(STEP_SECTION.slotHistory, updates.history, group)
    this.#encodeList(STEP_SECTION.slotBias, updates.bias, group)
    this.#encodeList(STEP_SECTION.swapOut, plan.swapOuts, group)
    this.#encodeList(STEP_SECTION.swapIn, plan.swapIns, group)
    this.#encodeCopies(plan, group)
    this.#encodeList(STEP_SECTION.allowedTokens, updates.allowed, group)
  }

  #encodeTokens(plan: StepPlan, group: number): void {
    const words = this.#words
    const tokens = this.#section(STEP_SECTION.tokens, group, plan.numTokens)
    const positions = this.#section(STEP_SECTION.positions, group, plan.numTokens)
    const kvSlots = this.#section(STEP_SECTION.kvSlots, group, plan.numTokens)
    const blockSize = this.#blockSize
    let row = 0
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      const end = plan.starts[i] + plan.counts[i]
      for (let position = plan.starts[i]; position < end; position++, row++) {
        const known = position < sequence.numConfirmed
        const block = Math.floor(position / blockSize)
        words[tokens + row] = known ? sequence.tokens[position] : -(sequence.slot + 1)
        words[positions + row] = position
        words[kvSlots + row] = sequence.blocks[block] * blockSize + (position - block * blockSize)
      }
    }
  }

  #encodeSequences(plan: StepPlan, width: number, group: number): void {
    const words = this.#words
    const starts = this.#section(STEP_SECTION.seqStarts, group, plan.numSeqs + 1)
    const lengths = this.#section(STEP_SECTION.seqLens, group, plan.numSeqs)
    const tables = this.#section(STEP_SECTION.blockTables, group, plan.numSeqs * width)
    let row = 0
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      words[starts + i] = row
      words[lengths + i] = plan.starts[i] + plan.counts[i]
      row += plan.counts[i]
      const { blocks, numBlocks } = sequence
      const table = tables + i * width
      for (let b = 0; b < numBlocks; b++) words[table + b] = blocks[b]
      words.fill(-1, table + numBlocks, table + width)
    }
    words[starts + plan.numSeqs] = row
  }

  #encodeRows(plan: StepPlan, group: number): void {
    const words = this.#words
    let at = this.#section(STEP_SECTION.rows, group, 4 * plan.numRows)
    let firstRow = 0
    for (let i = 0; i < plan.numSeqs; i++) {
      const sequence = plan.seqs[i]
      const count = plan.counts[i]
      // The rows of a sequence are its last ones.
      for (let token = count - plan.rowCounts[i]; token < count; token++, at += 4) {
        const scored = sequence.kind === 'score'
        words[at] = firstRow + token
        words[at + 1] = plan.samples[i] === 1 ? sequence.slot : -1
        words[at + 2] = scored ? sequence.tokens[plan.starts[i] + token + 1] : -1
        words[at + 3] = sequence.rowFlags | (plan.samples[i] === 1 ? ROW_FLAG.sample : 0)
      }
      firstRow += count
    }
  }

  #encodeCopies({ copies, numCopies }: StepPlan, group: number): void {
    if (numCopies === 0) return
    const at = this.#section(STEP_SECTION.blockCopies, group, 2 * numCopies)
    for (let i = 0; i < 2 * numCopies; i++) this.#words[at + i] = copies[i]
  }

  #encodeList(kind: number, list: Words, group: number): void {
    if (list.length > 0) list.copyTo(this.#words, this.#section(kind, group, list.length))
  }

  /** Adds a section to the table; returns where its words begin. */
  #section(kind: number, group: number, length: number): number {
    const offset = this.#offset
    this.#words[this.#entry++] = kind
    this.#words[this.#entry++] = group
    this.#words[this.#entry++] = offset
    this.#words[this.#entry++] = length
    this.#offset += length
    return offset
  }

  #nextBuffer(size: number): Int32Array {
    this.#turn = (this.#turn + 1) % this.#buffers.length
    if (this.#buffers[this.#turn].length < size) {
      let capacity = 1024
      while (capacity < size) capacity *= 2
      this.#buffers[this.#turn] = new Int32Array(capacity)
    }
    return this.#buffers[this.#turn]
  }
}

/** Views into a result's words; see RESULT_SECTION. */
export interface StepResult {
  readonly sampled: Int32Array
  readonly logprobs: Float32Array
  readonly topLogprobs: Int32Array
  /** Float bits of the rows that asked, each behind its row index. */
  readonly logits: Int32Array
  readonly queueUs: number
  readonly runUs: number
}

const NO_WORDS: Int32Array = new Int32Array(0)
const NO_FLOATS: Float32Array = new Float32Array(0)

/** ERR_INTERNAL when the words are not a result with `numRows` rows. */
export function decodeResult(words: Int32Array, numRows: number, group = 0): StepResult {
  const result = {
    sampled: NO_WORDS,
    logprobs: NO_FLOATS,
    topLogprobs: NO_WORDS,
    logits: NO_WORDS,
    queueUs: 0,
    runUs: 0,
  }
  if (words.length < STEP_HEADER_WORDS || words[0] !== STEP_VERSION)
    throw new EngineError('ERR_INTERNAL', 'the result of a step has no valid header')
  for (let section = 0; section < words[4]; section++) {
    const entry = STEP_HEADER_WORDS + section * STEP_SECTION_WORDS
    const offset = words[entry + 2]
    const end = offset + words[entry + 3]
    if (!(offset >= 0 && end >= offset && end <= words.length))
      throw new EngineError('ERR_INTERNAL', `section ${section} of a result lies outside it`)
    if (words[entry + 1] !== group) continue
    const body = words.subarray(offset, end)
    switch (words[entry]) {
      case RESULT_SECTION.sampled:
        result.sampled = body
        break
      case RESULT_SECTION.logprobs:
        result.logprobs = new Float32Array(body.buffer, body.byteOffset, body.length)
        break
      case RESULT_SECTION.topLogprobs:
        result.topLogprobs = body
        break
      case RESULT_SECTION.logits:
        result.logits = body
        break
      case RESULT_SECTION.timings:
        result.queueUs = body[0]
        result.runUs = body[1]
        break
    }
  }
  if (result.sampled.length !== numRows || result.logprobs.length !== numRows)
    throw new EngineError(
      'ERR_INTERNAL',
      `a step with ${numRows} rows gave ${result.sampled.length} tokens and ${result.logprobs.length} log-probabilities`,
    )
  return result
}

/** The sections of one kind, by group; none where the result has none. */
export function resultSections(words: Int32Array, kind: number): Int32Array[] {
  const sections: Int32Array[] = []
  for (let section = 0; section < words[4]; section++) {
    const entry = STEP_HEADER_WORDS + section * STEP_SECTION_WORDS
    if (words[entry] !== kind) continue
    sections[words[entry + 1]] = words.subarray(
      words[entry + 2],
      words[entry + 2] + words[entry + 3],
    )
  }
  return sections
}

/** The most likely tokens of a row that asked for them, best first. */
export function topLogprobsOfRow(
  result: StepResult,
  row: number,
): { token: number; logprob: number }[] {
  const words = result.topLogprobs
  for (let at = 0; at < words.length; at += 2 + 2 * words[at + 1]) {
    if (words[at] !== row) continue
    return Array.from({ length: words[at + 1] }, (_, i) => ({
      token: words[at + 2 + 2 * i],
      logprob: floatOfWord(words[at + 3 + 2 * i]),
    }))
  }
  return []
}
