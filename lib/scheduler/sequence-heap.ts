/** SequenceHeap: a binary heap of waiting sequences, smallest `orderKey` first, then order of arrival. */

import type { Sequence } from './sequence.ts'

function comesBefore(a: Sequence, b: Sequence): boolean {
  return a.orderKey < b.orderKey || (a.orderKey === b.orderKey && a.id < b.id)
}

export class SequenceHeap {
  readonly #items: Sequence[] = []

  get first(): Sequence {
    return this.#items[0]
  }

  push(sequence: Sequence): void {
    this.#rise(this.#items.push(sequence) - 1)
  }

  remove(sequence: Sequence): void {
    const index = sequence.heapIndex
    const last = this.#items.pop() as Sequence
    sequence.heapIndex = -1
    if (last === sequence) return
    this.#place(last, index)
    this.#rise(index)
    this.#sink(last.heapIndex)
  }

  #rise(start: number): void {
    const sequence = this.#items[start]
    let index = start
    while (index > 0) {
      const parent = (index - 1) >> 1
      if (!comesBefore(sequence, this.#items[parent])) break
      this.#place(this.#items[parent], index)
      index = parent
    }
    this.#place(sequence, index)
  }

  #sink(start: number): void {
    const sequence = this.#items[start]
    const size = this.#items.length
    let index = start
    for (;;) {
      let child = 2 * index + 1
      if (child >= size) break
      if (child + 1 < size && comesBefore(this.#items[child + 1], this.#items[child])) child++
      if (!comesBefore(this.#items[child], sequence)) break
      this.#place(this.#items[child], index)
      index = child
    }
    this.#place(sequence, index)
  }

  #place(sequence: Sequence, index: number): void {
    this.#items[index] = sequence
    sequence.heapIndex = index
  }
}
