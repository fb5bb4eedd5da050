/**
 * StepBudget: the tokens and rows of the step being planned, and how prompts share them. Every
 * prompt gets at least `minChunk` tokens or what is left; what nobody else takes goes to the first.
 */

import { computeTarget, type Sequence } from './sequence.ts'

export class StepBudget {
  readonly #minChunk: number
  readonly #maxPartialPrefills: number
  #tokens = 0
  #rows = 0
  #numPartial = 0

  constructor(minChunk: number, maxPartialPrefills: number) {
    this.#minChunk = minChunk
    this.#maxPartialPrefills = maxPartialPrefills
  }

  begin(tokens: number, rows: number): void {
    this.#tokens = tokens
    this.#rows = rows
    this.#numPartial = 0
  }

  get isSpent(): boolean {
    return this.#tokens <= 0 || this.#rows <= 0
  }

  /** As many prompts as may be are left unfinished by this step. */
  get isBacklogFull(): boolean {
    return this.#numPartial >= this.#maxPartialPrefills
  }

  /** One token and its row, for a sequence that has caught up. */
  takeDecode(): void {
    this.#tokens--
    this.#rows--
  }

  limitTokens(tokens: number): void {
    this.#tokens = Math.min(this.#tokens, tokens)
  }

  /** Whether another prompt may share the step beside `numPrefills` ones. */
  hasRoomBeside(numPrefills: number): boolean {
    return numPrefills < this.#maxPartialPrefills
  }

  /** Starts a prompt's chunk: its share among `sharers` that are still to be served. */
  grantShare(sequence: Sequence, sharers: number): void {
    sequence.chunk = 0
    this.#grant(sequence, Math.max(this.#minChunk, Math.floor(this.#tokens / sharers)))
    if (sequence.numComputed + sequence.chunk < computeTarget(sequence)) this.#numPartial++
  }

  /** Adds to a prompt's chunk whatever is left. */
  grantRest(sequence: Sequence): void {
    this.#grant(sequence, this.#tokens)
  }

  /** For a candidate that would leave one more prompt unfinished: how many share with it. */
  sharersBeside(othersWait: boolean): number {
    return othersWait && this.#numPartial + 1 < this.#maxPartialPrefills ? 2 : 1
  }

  #grant(sequence: Sequence, tokens: number): void {
    const remaining = computeTarget(sequence) - sequence.numComputed - sequence.chunk
    let granted = Math.min(tokens, remaining, this.#tokens)
    if (granted <= 0) return
    if (sequence.kind !== 'generate') {
      // Leave rows for the prompts beside it to sample their first token.
      if (this.#rows <= 0) return
      granted = Math.min(granted, Math.max(1, this.#rows - this.#maxPartialPrefills))
      this.#rows -= granted
    } else if (granted === remaining) {
      if (this.#rows > 0) this.#rows--
      else granted--
    }
    sequence.chunk += granted
    this.#tokens -= granted
  }
}
