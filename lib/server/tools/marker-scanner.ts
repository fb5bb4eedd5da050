/**
 * MarkerScanner: finds markers in text that arrives in pieces. Text that may still begin a marker
 * is held back, at most the longest marker's length.
 */

export interface Found {
  /** Text before the marker, or all that is certain. */
  readonly text: string
  readonly marker?: string
}

export class MarkerScanner {
  #buffer = ''

  push(text: string): void {
    this.#buffer += text
  }

  /** Up to the first of `markers`; where several begin at one place, the longest. */
  next(markers: readonly string[]): Found {
    const buffer = this.#buffer
    let at = -1
    let marker = ''
    for (const candidate of markers) {
      const found = buffer.indexOf(candidate)
      if (found < 0) continue
      if (at >= 0 && (found > at || (found === at && candidate.length < marker.length))) continue
      at = found
      marker = candidate
    }
    if (at >= 0) {
      this.#buffer = buffer.slice(at + marker.length)
      return { text: buffer.slice(0, at), marker }
    }
    const numHeld = Math.max(...markers.map((candidate) => heldLength(buffer, candidate)))
    this.#buffer = buffer.slice(buffer.length - numHeld)
    return { text: buffer.slice(0, buffer.length - numHeld) }
  }

  /** The next character, whatever it is. */
  take(): string | undefined {
    if (this.#buffer === '') return undefined
    const char = this.#buffer[0]
    this.#buffer = this.#buffer.slice(1)
    return char
  }

  /** All that is held. */
  rest(): string {
    const rest = this.#buffer
    this.#buffer = ''
    return rest
  }
}

/** Length of the longest end of `text` that properly begins `marker`. */
function heldLength(text: string, marker: string): number {
  for (let length = Math.min(text.length, marker.length - 1); length > 0; length--)
    if (marker.startsWith(text.slice(text.length - length))) return length
  return 0
}
