/**
 * Numbers between two bounds → EBNF, exactly: decimal digits position by position. Bounds are scaled
 * to integers, so that 0.25 ≤ x ≤ 3 is 25 ≤ 100x ≤ 300 with a point before the last two digits.
 */

import type { GrammarBuilder } from './builder.ts'

const DIGITS = '0123456789'
const SYMBOLS = [...DIGITS, '.', '-']

/** What each character of a number may be, from the first, with blanks between: `- 12 0123456789`. */
type Text = string

/** What each digit may be, from the first. */
type Digits = (readonly [from: number, to: number])[]

/** Texts of `length` digits from `low` to `high`, leading zeros included. */
function digitsBetween(low: bigint, high: bigint, length: number): Digits[] {
  const lowText = low.toString().padStart(length, '0')
  const highText = high.toString().padStart(length, '0')
  const any = (count: number): Digits => Array.from({ length: count }, () => [0, 9] as const)
  const fixed = (text: string): Digits => [...text].map((digit) => [+digit, +digit] as const)
  let common = 0
  while (common < length && lowText[common] === highText[common]) common++
  if (common === length) return [fixed(lowText)]
  const found: Digits[] = []
  const prefix = fixed(lowText.slice(0, common))
  const [first, last] = [+lowText[common]!, +highText[common]!]
  const rest = length - common - 1
  // From `low` up to where its digit at `common` changes.
  for (let at = length - 1; at > common; at--) {
    const digit = +lowText[at]!
    if (digit < 9)
      found.push([...fixed(lowText.slice(0, at)), [digit + 1, 9], ...any(length - at - 1)])
  }
  found.push(fixed(lowText))
  if (last - first > 1) found.push([...prefix, [first + 1, last - 1], ...any(rest)])
  for (let at = common + 1; at < length; at++) {
    const digit = +highText[at]!
    if (digit > 0)
      found.push([...fixed(highText.slice(0, at)), [0, digit - 1], ...any(length - at - 1)])
  }
  found.push(fixed(highText))
  return found
}

/** Digits with a point before the last `fraction` of them. */
function withPoint(digits: Digits, fraction: number): Text {
  const whole = digits.length - fraction
  const text = digits.map(([from, to]) => DIGITS.slice(from, to + 1))
  if (fraction > 0) text.splice(whole, 0, '.')
  return text.join(' ')
}

/** low ≤ x · 10^fraction ≤ high, both ≥ 0, without leading zeros. */
function positive(low: bigint, high: bigint, fraction: number): Text[] {
  const choices: Text[] = []
  let length = fraction + 1
  let begin = 0n
  for (let end = 10n ** BigInt(length) - 1n; begin <= high; length++) {
    const from = begin > low ? begin : low
    const to = end < high ? end : high
    if (from <= to)
      for (const digits of digitsBetween(from, to, length))
        choices.push(withPoint(digits, fraction))
    begin = end + 1n
    end = end * 10n + 9n
  }
  return choices
}

function between(low: bigint, high: bigint, fraction: number): Text[] {
  const choices: Text[] = []
  if (low < 0n) {
    const least = high < 0n ? -high : 1n
    for (const choice of positive(least, -low, fraction)) choices.push(`- ${choice}`)
  }
  if (high >= 0n) choices.push(...positive(low > 0n ? low : 0n, high, fraction))
  return choices
}

export interface NumberBounds {
  readonly minimum?: number
  readonly maximum?: number
  readonly exclusiveMinimum?: number
  readonly exclusiveMaximum?: number
}

const MAX_FRACTION = 15
const DEFAULT_FRACTION = 2
/** Where there is no bound: fifteen digits, which float64 holds. */
const FAR = 10n ** 15n

/** `value` · 10^fraction, rounded down or up. */
function scale(value: number, fraction: number, up: boolean): bigint {
  const [mantissa, exponent] = value.toExponential().split('e') as [string, string]
  const [whole, decimals = ''] = mantissa.split('.') as [string, string?]
  const digits = BigInt(whole + decimals)
  const shift = Number(exponent) - decimals.length + fraction
  if (shift >= 0) return digits * 10n ** BigInt(shift)
  const divisor = 10n ** BigInt(-shift)
  const quotient = digits / divisor
  if (quotient * divisor === digits) return quotient
  return up === digits > 0n ? quotient + (up ? 1n : -1n) : quotient
}

function decimalsOf(value: number | undefined): number {
  if (value === undefined) return 0
  const [mantissa, exponent] = value.toExponential().split('e') as [string, string]
  return Math.max(0, (mantissa.split('.')[1]?.length ?? 0) - Number(exponent))
}

function scaledRange(bounds: NumberBounds, fraction: number): readonly [bigint, bigint] {
  const far = FAR * 10n ** BigInt(fraction)
  const lows: bigint[] = []
  const highs: bigint[] = []
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = bounds
  if (minimum !== undefined) lows.push(scale(minimum, fraction, true))
  if (maximum !== undefined) highs.push(scale(maximum, fraction, false))
  if (exclusiveMinimum !== undefined) lows.push(scale(exclusiveMinimum, fraction, false) + 1n)
  if (exclusiveMaximum !== undefined) highs.push(scale(exclusiveMaximum, fraction, true) - 1n)
  const largest = (values: bigint[]) => values.reduce((a, b) => (a > b ? a : b))
  const smallest = (values: bigint[]) => values.reduce((a, b) => (a < b ? a : b))
  const low = lows.length > 0 ? largest(lows) : undefined
  const high = highs.length > 0 ? smallest(highs) : undefined
  return [
    low ?? (high !== undefined && high < -far ? high * 10n : -far),
    high ?? (low !== undefined && low > far ? low * 10n : far),
  ]
}

function rangeTexts(bounds: NumberBounds, isInteger: boolean): Text[] {
  const integers = between(...scaledRange(bounds, 0), 0)
  if (isInteger) return integers
  const decimals = Math.max(
    DEFAULT_FRACTION,
    ...Object.values(bounds).map((bound) => decimalsOf(bound as number | undefined)),
  )
  const fraction = Math.min(MAX_FRACTION, decimals)
  return [...integers, ...between(...scaledRange(bounds, fraction), fraction)]
}

/**
 * The rule of the numbers within bounds; undefined: none that can be written. A rule per set of texts
 * that may still come, so that no two choices of a rule begin with the same character: xgrammar
 * 0.1.27 joins such choices into more than they are.
 */
export function addNumberRange(
  builder: GrammarBuilder,
  bounds: NumberBounds,
  isInteger: boolean,
): string | undefined {
  const texts = rangeTexts(bounds, isInteger)
  if (texts.length === 0) return undefined
  const rules = new Map<string, string>()
  const state = (rest: readonly Text[]): string => {
    const key = rest.join('|')
    const known = rules.get(key)
    if (known !== undefined) return known
    const rule = builder.reserve()
    rules.set(key, rule)
    const choices = rest.includes('') ? ['""'] : []
    for (const [next, symbols] of nexts(rest)) {
      const behind = next.every((text) => text === '') ? '' : ` ${state(next)}`
      choices.push(`${builder.oneOf(symbols)}${behind}`)
    }
    builder.define(rule, choices.join(' | '))
    return rule
  }
  return state(sortedSet(texts))
}

function sortedSet(texts: readonly Text[]): Text[] {
  return [...new Set(texts)].sort()
}

/** By what may come behind them: the characters that may come first. Both sides are sorted sets. */
function nexts(texts: readonly Text[]): (readonly [rest: readonly Text[], symbols: string])[] {
  const found = new Map<string, { rest: readonly Text[]; symbols: string }>()
  const split = texts.map((text) => {
    const blank = text.indexOf(' ')
    return blank < 0 ? [text, ''] : [text.slice(0, blank), text.slice(blank + 1)]
  })
  for (const symbol of SYMBOLS) {
    const rest = sortedSet(
      split.filter(([first]) => first!.includes(symbol)).map(([, behind]) => behind!),
    )
    if (rest.length === 0) continue
    const key = rest.join('|')
    const same = found.get(key)
    if (same === undefined) found.set(key, { rest, symbols: symbol })
    else same.symbols += symbol
  }
  return [...found.values()].map(({ rest, symbols }) => [rest, symbols] as const)
}
