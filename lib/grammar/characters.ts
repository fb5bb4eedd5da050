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

/** What is not in the set; surrogates are no characters, and in none. */
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

const LAST_ASCII = 0x7f
const BEYOND_ASCII: Characters = [
  [LAST_ASCII + 1, 0xd7ff],
  [0xe000, MAX_CODE_POINT],
]

function bracket(ranges: Characters): string {
  const items = ranges.map(([from, to]) =>
    from === to ? classCharacter(from) : `${classCharacter(from)}-${classCharacter(to)}`,
  )
  return `[${items.join('')}]`
}

/** A class of one byte stands twice: xgrammar makes a text of a class of one, and UTF-8 of a text. */
function byteClass([from, to]: ByteRange): string {
  return from === to
    ? bracket([
        [from, from],
        [from, from],
      ])
    : bracket([[from, to]])
}

/**
 * One character of the set, which is not empty: `[a-z0-9]`. xgrammar reads a class as bytes, unless
 * it is negated, so ranges beyond ASCII become sequences of byte ranges.
 */
export function classOf(ranges: Characters): string {
  const beyond = subtract(ranges, [[0, LAST_ASCII]])
  const ascii = subtract(ranges, [[LAST_ASCII + 1, MAX_CODE_POINT]])
  if (beyond.length === 0) return bracket(ascii)
  if (isSame(beyond, BEYOND_ASCII)) {
    const missing = subtract([[0, LAST_ASCII]], ascii)
    if (missing.length > 0) return `[^${bracket(missing).slice(1)}`
    const last = bracket([[LAST_ASCII, LAST_ASCII]])
    return `([^${last.slice(1)} | ${last})`
  }
  const choices = beyond.flatMap(([from, to]) => utf8Ranges(from, to))
  return `(${[...(ascii.length > 0 ? [bracket(ascii)] : []), ...choices].join(' | ')})`
}

function isSame(a: Characters, b: Characters): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}

const encoder = new TextEncoder()

/** Byte sequences of the characters of a range, each as classes of bytes. */
function utf8Ranges(from: number, to: number): string[] {
  // Ranges in which all characters have as many bytes.
  for (const last of [0x7ff, 0xffff])
    if (from <= last && last < to) return [...utf8Ranges(from, last), ...utf8Ranges(last + 1, to)]
  const low = [...encoder.encode(String.fromCodePoint(from))]
  const high = [...encoder.encode(String.fromCodePoint(to))]
  return byteRanges(low, high).map((bytes) => bytes.map(byteClass).join(' '))
}

type ByteRange = readonly [from: number, to: number]

/** From `low` to `high`, sequences of equally many bytes; all but the first are 0x80–0xbf. */
function byteRanges(low: readonly number[], high: readonly number[]): ByteRange[][] {
  const [first, last] = [low[0]!, high[0]!]
  if (low.length === 1) return [[[first, last]]]
  const rest = low.length - 1
  const least = new Array<number>(rest).fill(0x80)
  const most = new Array<number>(rest).fill(0xbf)
  const below = (byte: number, ends: ByteRange[][]): ByteRange[][] =>
    ends.map((bytes) => [[byte, byte], ...bytes])
  if (first === last) return below(first, byteRanges(low.slice(1), high.slice(1)))
  const found = below(first, byteRanges(low.slice(1), most))
  if (last - first > 1)
    found.push([[first + 1, last - 1], ...least.map((byte) => [byte, 0xbf] as const)])
  found.push(...below(last, byteRanges(least, high.slice(1))))
  return found
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
  for (const [codePoint, escaped] of SHORT_ESCAPES)
    if (contains(ranges, codePoint)) choices.push(literalOf(escaped))
  if (choices.length < 2) return choices[0]
  return `(${choices.join(' | ')})`
}
