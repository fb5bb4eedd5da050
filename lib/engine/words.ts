/**
 * WordList: a growing list of int32 words that is refilled every step without being reallocated.
 * Floats are stored by their bits, 64-bit numbers as two words (low, high).
 */

const floatBits = new Float32Array(1)
const floatWord = new Int32Array(floatBits.buffer)

/** The int32 word with the bits of `value` as a float32. */
export function wordOfFloat(value: number): number {
  floatBits[0] = value
  return floatWord[0]
}

/** The float32 whose bits are `word`. */
export function floatOfWord(word: number): number {
  floatWord[0] = word
  return floatBits[0]
}

export class WordList {
  #words = new Int32Array(64)
  #length = 0

  get length(): number {
    return this.#length
  }

  clear(): void {
    this.#length = 0
  }

  push(word: number): void {
    if (this.#length === this.#words.length) this.#grow(this.#length + 1)
    this.#words[this.#length++] = word
  }

  pushFloat(value: number): void {
    this.push(wordOfFloat(value))
  }

  pushAll(words: Int32Array): void {
    this.#grow(this.#length + words.length)
    this.#words.set(words, this.#length)
    this.#length += words.length
  }

  copyTo(target: Int32Array, offset: number): void {
    for (let i = 0; i < this.#length; i++) target[offset + i] = this.#words[i]
  }

  toArray(): Int32Array {
    return this.#words.slice(0, this.#length)
  }

  #grow(length: number): void {
    if (length <= this.#words.length) return
    const grown = new Int32Array(Math.max(length, 2 * this.#words.length))
    grown.set(this.#words)
    this.#words = grown
  }
}
