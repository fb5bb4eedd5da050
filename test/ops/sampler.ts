/** A program that is the sample op alone, and steps for it. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { sample } from '../../lib/ops/sample.ts'
import { encodeStep, OpRuntime, placeApart, type StepResult, wordsOf } from '../support/native.ts'
import { builderFor } from './op-case.ts'
import type { SamplingParams } from './sampling-reference.ts'

export interface SampleRow {
  /** [columns] of the logits buffer. */
  readonly logits: ArrayLike<number>
  readonly slot?: number
  readonly position?: number
  /** ROW_FLAG bits and the number of top log-probabilities. */
  readonly flags: number
  readonly target?: number
}

export interface SlotChanges {
  readonly params?: ReadonlyMap<number, SamplingParams>
  readonly history?: ReadonlyMap<number, readonly number[]>
  readonly bias?: ReadonlyMap<number, ReadonlyMap<number, number>>
  /** Slot → tokens it may sample; undefined: all. */
  readonly allowed?: ReadonlyMap<number, readonly number[] | undefined>
}

export interface SamplerOptions {
  readonly vocabSize: number
  /** Of the logits buffer; vocabSize when absent. */
  readonly columns?: number
  readonly maxRows: number
  readonly world?: number
  readonly cpuIsa?: string
  readonly threadsPerRank?: number
}

export class Sampler {
  readonly runtime: OpRuntime
  readonly #columns: number
  readonly #vocabSize: number

  private constructor(runtime: OpRuntime, columns: number, vocabSize: number) {
    this.runtime = runtime
    this.#columns = columns
    this.#vocabSize = vocabSize
  }

  /** `beside`: in the runtime of this one, whose slots it shares. */
  static async open(options: SamplerOptions, beside?: Sampler): Promise<Sampler> {
    const { vocabSize, columns = vocabSize, maxRows, world = 1 } = options
    const builder = builderFor(maxRows, world, { vocabSize, numSlots: maxRows })
    const logits = builder.arena('logits', 'f32', ['R', columns])
    const tokens = builder.arena('tokens', 'i32', ['R'])
    builder.add('op', sample({ logits, tokens }, { vocab_size: vocabSize }))
    const program = placeApart(builder)
    const runtime = beside
      ? await beside.runtime.add(program)
      : await OpRuntime.open(program, options)
    return new Sampler(runtime, columns, vocabSize)
  }

  /** Each row is a token of the step too, so that it has a position. */
  async run(rows: readonly SampleRow[], changes: SlotChanges = {}): Promise<StepResult> {
    const logits = new Float64Array(rows.length * this.#columns)
    rows.forEach((row, index) => {
      logits.set(Float64Array.from(row.logits), index * this.#columns)
    })
    for (let rank = 0; rank < this.runtime.program.world; rank++) {
      await this.runtime.write('logits', rank, logits)
    }
    const {
      params = new Map(),
      history = new Map(),
      bias = new Map(),
      allowed = new Map(),
    } = changes
    return this.runtime.submit(
      encodeStep(
        new Map([
          [STEP_SECTION.partBounds, [0, rows.length]],
          [STEP_SECTION.tokens, rows.map(() => 0)],
          [STEP_SECTION.positions, rows.map(({ position }) => position ?? 0)],
          [
            STEP_SECTION.rows,
            rows.flatMap(({ slot, target, flags }, row) => [row, slot ?? -1, target ?? -1, flags]),
          ],
          [STEP_SECTION.slotParams, [...params].flatMap(([slot, p]) => slotWords(slot, p))],
          [
            STEP_SECTION.slotHistory,
            [...history].flatMap(([slot, tokens]) => [slot, tokens.length, ...tokens]),
          ],
          [
            STEP_SECTION.slotBias,
            [...bias].flatMap(([slot, entries]) => [
              slot,
              entries.size,
              ...[...entries].flatMap(([token, value]) => [token, ...wordsOf(value)]),
            ]),
          ],
          [
            STEP_SECTION.allowedTokens,
            [...allowed].flatMap(([slot, tokens]) => {
              const mask = tokens === undefined ? [] : maskOf(tokens, this.#vocabSize)
              return [slot, mask.length, ...mask]
            }),
          ],
        ]),
      ),
    )
  }

  async close(): Promise<void> {
    await this.runtime.close()
  }
}

/** A bit per token, 32 to a word. */
function maskOf(tokens: readonly number[], vocabSize: number): Int32Array {
  const words = new Int32Array(Math.ceil(vocabSize / 32))
  for (const token of tokens) words[token >> 5]! |= 1 << (token & 31)
  return words
}

function slotWords(slot: number, params: SamplingParams): number[] {
  const seed = params.seed ?? 0n
  return [
    slot,
    Number(BigInt.asIntN(32, seed)),
    Number(BigInt.asIntN(32, seed >> 32n)),
    ...wordsOf(params.temperature ?? 0),
    params.topK ?? 0,
    ...wordsOf(
      params.topP ?? 1,
      params.minP ?? 0,
      params.repetition ?? 1,
      params.presence ?? 0,
      params.frequency ?? 0,
    ),
    0,
    0,
  ]
}
