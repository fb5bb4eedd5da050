/**
 * WaitingQueue: sequences that wait for their first admission, in order of arrival (an array with
 * holes) and in the order of a policy. Fixed keys live in a heap. Others are computed when a step
 * admits: one pass finds the first few, which is more than most steps admit. A sequence that has
 * waited `starvationMs` is first whatever the policy says, oldest before younger: that is the bound
 * on starvation.
 */

import type { OrderPolicy, OrderState } from './policy.ts'
import type { Sequence } from './sequence.ts'
import { SequenceHeap } from './sequence-heap.ts'

/** Sequences that one pass finds. */
const MAX_FIRST = 16
/** Holes that are not worth closing. */
const FEW_HOLES = 64

export class WaitingQueue {
  readonly #order: OrderPolicy
  readonly #starvationMs: number
  readonly #heap = new SequenceHeap()
  /** In order of arrival; undefined: has left. An array, because a pass over it is what costs. */
  readonly #arrivals: (Sequence | undefined)[] = []
  /** Index of the oldest. */
  #head = 0
  #size = 0
  #numTokens = 0
  /** Keys that change: the first in order, as of this step, and their keys. */
  readonly #first: Sequence[] = []
  readonly #firstKeys = new Float64Array(MAX_FIRST)

  constructor(order: OrderPolicy, starvationMs: number) {
    this.#order = order
    this.#starvationMs = starvationMs
  }

  get size(): number {
    return this.#size
  }
  get oldest(): Sequence | undefined {
    return this.#arrivals[this.#head]
  }
  /** Of all that wait. */
  get numTokens(): number {
    return this.#numTokens
  }

  /** Ids ascend. */
  push(sequence: Sequence, state: OrderState): void {
    if (this.#arrivals.length > 2 * this.#size + FEW_HOLES) this.#closeHoles()
    sequence.waitIndex = this.#arrivals.push(sequence) - 1
    this.#size++
    this.#numTokens += sequence.numTokens
    if (!this.#order.isFixed) return
    sequence.orderKey = this.#order.key(sequence, state)
    this.#heap.push(sequence)
  }

  /** Like push, for a sequence that may be older than others that wait. */
  insert(sequence: Sequence, state: OrderState): void {
    this.push(sequence, state)
    const arrivals = this.#arrivals
    for (let at = sequence.waitIndex; at > 0; at--) {
      const before = arrivals[at - 1]
      if (before !== undefined && before.id < sequence.id) break
      arrivals[at] = before
      arrivals[at - 1] = sequence
      if (before !== undefined) before.waitIndex = at
      sequence.waitIndex = at - 1
    }
    this.#head = Math.min(this.#head, sequence.waitIndex)
  }

  remove(sequence: Sequence): void {
    const arrivals = this.#arrivals
    arrivals[sequence.waitIndex] = undefined
    sequence.waitIndex = -1
    while (this.#head < arrivals.length && arrivals[this.#head] === undefined) this.#head++
    this.#size--
    this.#numTokens -= sequence.numTokens
    if (sequence.heapIndex >= 0) this.#heap.remove(sequence)
    const index = this.#first.indexOf(sequence)
    if (index >= 0) this.#first.splice(index, 1)
  }

  /** A step begins to admit. */
  begin(): void {
    this.#first.length = 0
  }

  /** The oldest has waited so long that it goes first. */
  isOverdue(nowMs: number): boolean {
    const { oldest } = this
    return oldest !== undefined && nowMs - oldest.arrivalMs >= this.#starvationMs
  }

  /**
   * The candidate whose turn it is; it stays in the queue. There is one. `probe` refreshes what
   * orders with `usesPrefix` read.
   */
  next(state: OrderState, probe: (sequence: Sequence) => void): Sequence {
    const { isFixed, maxWaiting = Number.POSITIVE_INFINITY } = this.#order
    if (this.isOverdue(state.nowMs) || this.#size > maxWaiting) return this.oldest as Sequence
    if (isFixed) return this.#heap.first
    if (this.#first.length === 0) this.#findFirst(state, probe)
    return this.#first[0]
  }

  /** How many arrived before it and still wait. */
  position(sequence: Sequence): number {
    let position = 0
    for (let i = this.#head; i < sequence.waitIndex; i++)
      if (this.#arrivals[i] !== undefined) position++
    return position
  }

  /** One pass over all that wait, for those that the next admissions of this step will ask for. */
  #findFirst(state: OrderState, probe: (sequence: Sequence) => void): void {
    const order = this.#order
    const arrivals = this.#arrivals
    const first = this.#first
    const keys = this.#firstKeys
    for (let i = this.#head; i < arrivals.length; i++) {
      const sequence = arrivals[i]
      if (sequence === undefined) continue
      if (order.usesPrefix) probe(sequence)
      const key = order.key(sequence, state)
      // In order of arrival: among equals the first stays in front.
      if (first.length === MAX_FIRST && keys[MAX_FIRST - 1] <= key) continue
      let index = Math.min(first.length, MAX_FIRST - 1)
      for (; index > 0 && keys[index - 1] > key; index--) {
        first[index] = first[index - 1]
        keys[index] = keys[index - 1]
      }
      first[index] = sequence
      keys[index] = key
    }
  }

  #closeHoles(): void {
    const arrivals = this.#arrivals
    let kept = 0
    for (let i = this.#head; i < arrivals.length; i++) {
      const sequence = arrivals[i]
      if (sequence === undefined) continue
      sequence.waitIndex = kept
      arrivals[kept++] = sequence
    }
    arrivals.length = kept
    this.#head = 0
  }
}
