/** A small seeded generator (mulberry32), so that random tests can be repeated. */

export interface Random {
  /** [0, 1) */
  next(): number
  /** Whole number in [low, high]. */
  int(low: number, high: number): number
}

export function createRandom(seed: number): Random {
  let state = seed | 0
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return { next, int: (low, high) => low + Math.floor(next() * (high - low + 1)) }
}
