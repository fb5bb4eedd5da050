/**
 * Sets of characters as ascending, disjoint ranges of code points, and how EBNF writes them: as they
 * are, or as they stand inside a JSON string.
 */

/** Inclusive; ascending and disjoint. */
export type Characters = readonly (readonly [from: number, to: number])[]

export const MAX_CODE_POINT = 0x10ffff

export function normalize(ranges: Characters): Characters {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0])
  const merged: [number, number][] = []
  for (const [from, to] of sorted) {
    const last = merged.at(-1)
    if (last !== undefined && from <= last[1] + 1) last[1] = Math.max(last[1], to)
    else merged.push([from, to])
  }
  return merged
}

/** Surrogates are no characters. */
export function complement(ranges: Characters): Characters {
  const holes: [number, number][] = []
  let next = 0
  for (const [from, to] of normalize([...ranges, [0xd800, 0xdfff]])) {
    if (from > next) holes.push([next, from - 1])
    next = to + 1
  }
  if (next <= MAX_CODE_POINT) holes.push([next, MAX_CODE_POINT])
  return holes
}

export function subtract(a: Characters, b: Characters): Characters {
  return complement([...complement(a), ...b])
}

export function contains(ranges: Characters, codePoint: number): boolean {
  return ranges.some(([from, to]) => codePoint >= from && codePoint <= to)
}

const PLAIN = /^[A-Za-z0-9 _.,:;<>{}()+*?!@#$%&'=|~/]$/

function hex(codePoint: number): string {
  return codePoint > 0xffff
    ? `\\U${codePoint.toString(16).padStart(8, '0')}`
    : `\\u${codePoint.toString(16).padStart(4, '0')}`
}

function classCharacter(codePoint: number): string {
  const character = String.fromCodePoint(codePoint)
  return /^[A-Za-z0-9 _]$/.test(character) ? character : hex(codePoint)
}

/** `[a-z0-9]`; the set is not empty. */
export function classOf(ranges: Characters): string {
  const items = ranges.map(([from, to]) =>
    from === to ? classCharacter(from) : `${classCharacter(from)}-${classCharacter(to)}`,
  )
  return `[${items.join('')}]`
}

/** `"text"`; half a surrogate pair becomes U+FFFD. */
export function literalOf(text: string): string {
  let body = ''
  for (const character of text.toWellFormed())
    body += PLAIN.test(character) ? character : hex(character.codePointAt(0)!)
  return `"${body}"`
}

/** What JSON strings must escape. */
const ESCAPED: Characters = [
  [0x00, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
]
const SHORT_ESCAPES: ReadonlyMap<number, string> = new Map([
  [0x22, '\\"'],
  [0x5c, '\\\\'],
  [0x08, '\\b'],
  [0x0c, '\\f'],
  [0x0a, '\\n'],
  [0x0d, '\\r'],
  [0x09, '\\t'],
])

/** One character of the set inside a JSON string; undefined for an empty set. */
export function jsonClassOf(ranges: Characters): string | undefined {
  const choices: string[] = []
  const plain = subtract(ranges, ESCAPED)
  if (plain.length > 0) choices.push(classOf(plain))
  for (const [codePoint, escape] of SHORT_ESCAPES)
    if (contains(ranges, codePoint)) choices.push(literalOf(escape))
  if (choices.length < 2) return choices[0]
  return `(${choices.join(' | ')})`
}
