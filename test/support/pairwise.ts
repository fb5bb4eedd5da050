/**
 * Covering subsets of a matrix of cases: every pair of values of two factors that may occur together
 * does, in far fewer cases than the product has.
 */

type Case = Readonly<Record<string, unknown>>

/** The pairs of a case, as text. */
function pairsOf(one: Case): string[] {
  const factors = Object.entries(one)
  return factors.flatMap(([name, value], index) =>
    factors.slice(index + 1).map(([other, its]) => `${name}=${value} ${other}=${its}`),
  )
}

/** Picks, of all cases, one after another that has most pairs not seen yet; the first of equals. */
export function coverPairs<T extends Case>(all: readonly T[]): T[] {
  const left = new Set(all.flatMap(pairsOf))
  const chosen: T[] = []
  while (left.size > 0) {
    let best = all[0]!
    let most = 0
    for (const one of all) {
      const gain = pairsOf(one).filter((pair) => left.has(pair)).length
      if (gain > most) [best, most] = [one, gain]
    }
    for (const pair of pairsOf(best)) left.delete(pair)
    chosen.push(best)
  }
  return chosen
}
