/**
 * ContentWriter: content around tool calls. White space next to a call belongs to the format, not to
 * the answer, so a run of it is held until it is known what follows.
 */

import type { OutputPart } from './types.ts'

export class ContentWriter {
  #space = ''
  #afterCall = false

  write(text: string, parts: OutputPart[]): void {
    const whole = this.#space + text
    const solid = whole.trimEnd()
    this.#space = whole.slice(solid.length)
    if (solid === '') return
    parts.push({ kind: 'content', text: this.#afterCall ? solid.trimStart() : solid })
    this.#afterCall = false
  }

  /** A call was read here. */
  call(): void {
    this.#space = ''
    this.#afterCall = true
  }

  /** The output ends; white space at its end stays, unless a call is in front of it. */
  finish(parts: OutputPart[]): void {
    if (this.#space !== '' && !this.#afterCall) parts.push({ kind: 'content', text: this.#space })
    this.#space = ''
  }
}
