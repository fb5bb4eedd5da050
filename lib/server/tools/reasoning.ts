/**
 * Reasoning in front of an answer: `<think>…</think>`. Splits it off and passes the answer on to the
 * parser behind it. White space around the marks is dropped.
 */

import { MarkerScanner } from './marker-scanner.ts'
import type { OutputParser, OutputPart } from './types.ts'

export const THINK_OPEN = '<think>'
export const THINK_CLOSE = '</think>'

export class ReasoningParser implements OutputParser {
  readonly #scanner = new MarkerScanner()
  readonly #answer: OutputParser
  #state: 'before' | 'reasoning' | 'gap' | 'answer'
  #space = ''
  #isBlank = true

  /** `isOpen`: the prompt ends with `<think>`. */
  constructor(answer: OutputParser, isOpen: boolean) {
    this.#answer = answer
    this.#state = isOpen ? 'reasoning' : 'before'
  }

  push(text: string): OutputPart[] {
    const parts: OutputPart[] = []
    this.#scanner.push(text)
    if (this.#state === 'before') this.#readBefore(parts)
    if (this.#state === 'reasoning') this.#readReasoning(parts)
    if (this.#state === 'gap') {
      const rest = this.#scanner.rest().trimStart()
      if (rest === '') return parts
      this.#state = 'answer'
      parts.push(...this.#answer.push(rest))
    } else if (this.#state === 'answer') parts.push(...this.#answer.push(this.#scanner.rest()))
    return parts
  }

  finish(): OutputPart[] {
    const parts: OutputPart[] = []
    const rest = this.#scanner.rest()
    if (this.#state === 'reasoning') this.#write(rest, parts)
    else if (this.#state === 'before') parts.push(...this.#answer.push(this.#space + rest))
    parts.push(...this.#answer.finish())
    return parts
  }

  #readBefore(parts: OutputPart[]): void {
    const { text, marker } = this.#scanner.next([THINK_OPEN])
    const whole = this.#space + text
    if (whole.trim() !== '') {
      // An answer at once: a mark further on is part of it.
      this.#state = 'answer'
      parts.push(...this.#answer.push(whole + (marker ?? '')))
    } else if (marker !== undefined) {
      this.#state = 'reasoning'
      this.#space = ''
    } else this.#space = whole
  }

  #readReasoning(parts: OutputPart[]): void {
    const { text, marker } = this.#scanner.next([THINK_CLOSE])
    this.#write(text, parts)
    if (marker !== undefined) this.#state = 'gap'
  }

  /** Holds white space back until something follows it. */
  #write(text: string, parts: OutputPart[]): void {
    const whole = this.#space + text
    const solid = whole.trimEnd()
    this.#space = whole.slice(solid.length)
    if (solid === '') return
    parts.push({ kind: 'reasoning', text: this.#isBlank ? solid.trimStart() : solid })
    this.#isBlank = false
  }
}
