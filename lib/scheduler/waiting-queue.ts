/**
 * WaitingQueue: sequences that wait for their first admission, in order of arrival (a linked list
 * through the sequences) and in the order of a policy. Fixed keys live in a heap. Others are computed
 * when a step admits: one pass finds the first few, which is more than most steps admit.
 * A sequence that has waited `starvationMs` is first whatever the policy says, oldest before younger:
 * that is the bound on starvation.
 */

import type { OrderPolicy, OrderState } from './policy.ts'
import type { Sequence } from './sequence.ts'
import { SequenceHeap } from './sequence-heap.ts'

/** Sequences that one pass finds. */
const MAX_FIRST = 16

export class WaitingQueue {
  readonly #order: OrderPolicy
  readonly #starvationMs: number
  readonly #heap = new SequenceHeap()
  #head: Sequence | undefined
  #tail: Sequence | undefined
  #size = 0
  #numTokens = 0
  /** Keys that change: the first in order, as of this step. */
  readonly #first: Sequence[] = []

  constructor(order: OrderPolicy, starvationMs: number) {
    this.#order = order
    this.#starvationMs = starvationMs
  }

  get size(): number {
    return this.#size
  }
  get oldest(): Sequence | undefined {
    return this.#head
  }
  /** Of all that wait. */
  get numTokens(): number {
    return this.#numTokens
  }

  /** Ids ascend. */
  push(sequence: Sequence, state: OrderState): void {
    sequence.waitsAfter = this.#tail
    if (this.#tail === undefined) this.#head = sequence
    else this.#tail.waitsBefore = sequence
    this.#tail = sequence
    this.#size++
    this.#numTokens += sequence.numTokens
    if (!this.#order.isFixed) return
    sequence.orderKey = this.#order.key(sequence, state)
    this.#heap.push(sequence)
  }

  remove(sequence: Sequence): void {
    const { waitsAfter: previous, waitsBefore: next } = sequence
    if (previous === undefined) this.#head = next
    else previous.waitsBefore = next
    if (next === undefined) this.#tail = previous
    else next.waitsAfter = previous
    sequence.waitsAfter = undefined
    sequence.waitsBefore = undefined
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
    return this.#head !== undefined && nowMs - this.#head.arrivalMs >= this.#starvationMs
  }

  /**
   * The candidate whose turn it is; it stays in the queue. There is one. `probe` refreshes what
   * orders with `usesPrefix` read.
   */
  next(state: OrderState, probe: (sequence: Sequence) => void): Sequence {
    const head = this.#head as Sequence
    const { isFixed, maxWaiting = Number.POSITIVE_INFINITY } = this.#order
    if (this.isOverdue(state.nowMs) || this.#size > maxWaiting) return head
    if (isFixed) return this.#heap.first
    if (this.#first.length === 0) this.#findFirst(state, probe)
    return this.#first[0]
  }

  /** How many arrived before it and still wait. */
  position(sequence: Sequence): number {
    let position = 0
    for (let other = sequence.waitsAfter; other !== undefined; other = other.waitsAfter) position++
    return position
  }

  /** One pass over all that wait, for those that the next admissions of this step will ask for. */
  #findFirst(state: OrderState, probe: (sequence: Sequence) => void): void {
    const order = this.#order
    const first = this.#first
    for (let at = this.#head; at !== undefined; at = at.waitsBefore) {
      if (order.usesPrefix) probe(at)
      const key = order.key(at, state)
      at.orderKey = key
      // In order of arrival: among equals the first stays in front.
      if (first.length === MAX_FIRST) {
        if (first[MAX_FIRST - 1].orderKey <= key) continue
        first.pop()
      }
      let index = first.length
      first.push(at)
      for (; index > 0 && first[index - 1].orderKey > key; index--) first[index] = first[index - 1]
      first[index] = at
    }
  }
}
