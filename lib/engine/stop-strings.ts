/**
 * StopMatcher: watches text that arrives in pieces for the first of several stop strings. Text
 * that may still turn out to begin one is held back. One Knuth-Morris-Pratt automaton per stop string
 * keeps the cost per character constant and the result the same for any grouping of the text.
 */

export interface StopMatch {
  /** Text that is certain to be output. */
  readonly text: string
  /** The stop string that was found; nothing after it counts. */
  readonly stop?: string
}

export class StopMatcher {
  readonly #stops: readonly string[]
  /** failures[s][n]: length of the longest proper border of the first n + 1 characters of stop s. */
  readonly #failures: readonly Int32Array[]
  /** How many characters of each stop string the text so far ends with. */
  readonly #matched: Int32Array
  /** The end of the text so far, not yet output. */
  #held = ''

  constructor(stops: readonly string[]) {
    this.#stops = stops
    this.#failures = stops.map(failureTable)
    this.#matched = new Int32Array(stops.length)
  }

  /** Takes more text. Where several stops end at one character, the longest counts. */
  push(text: string): StopMatch {
    if (this.#stops.length === 0) return { text }
    const whole = this.#held + text
    for (let at = this.#held.length; at < whole.length; at++) {
      const stop = this.#step(whole.charCodeAt(at))
      if (stop === undefined) continue
      this.#held = ''
      return { text: whole.slice(0, at + 1 - stop.length), stop }
    }
    let longest = 0
    for (const matched of this.#matched) longest = Math.max(longest, matched)
    this.#held = whole.slice(whole.length - longest)
    return { text: whole.slice(0, whole.length - longest) }
  }

  /** The text ends here: what was held back did not become a stop string. */
  finish(): string {
    const held = this.#held
    this.#held = ''
    return held
  }

  #step(char: number): string | undefined {
    let found: string | undefined
    for (let s = 0; s < this.#stops.length; s++) {
      const stop = this.#stops[s]
      const failure = this.#failures[s]
      let matched = this.#matched[s]
      while (matched > 0 && stop.charCodeAt(matched) !== char) matched = failure[matched - 1]
      if (stop.charCodeAt(matched) === char) matched++
      this.#matched[s] = matched
      if (matched === stop.length && (found === undefined || stop.length > found.length))
        found = stop
    }
    return found
  }
}

function failureTable(stop: string): Int32Array {
  const failure = new Int32Array(stop.length)
  let border = 0
  for (let n = 1; n < stop.length; n++) {
    while (border > 0 && stop.charCodeAt(border) !== stop.charCodeAt(n))
      border = failure[border - 1]
    if (stop.charCodeAt(border) === stop.charCodeAt(n)) border++
    failure[n] = border
  }
  return failure
}
