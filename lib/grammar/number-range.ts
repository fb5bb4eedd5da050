/**
 * Numbers between two bounds → EBNF, exactly: decimal digits position by position. Bounds are scaled
 * to integers, so that 0.25 ≤ x ≤ 3 is 25 ≤ 100x ≤ 300 with a point before the last two digits.
 */

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

function writeDigits(digits: Digits, fraction: number): string {
  const items: string[] = []
  const whole = digits.length - fraction
  digits.forEach(([from, to], index) => {
    if (index === whole) items.push('"."')
    items.push(from === to ? `"${from}"` : `[${from}-${to}]`)
  })
  return items.join(' ')
}

/** low ≤ x · 10^fraction ≤ high, both ≥ 0, without leading zeros. */
function positive(low: bigint, high: bigint, fraction: number): string[] {
  const choices: string[] = []
  let length = fraction + 1
  let begin = 0n
  for (let end = 10n ** BigInt(length) - 1n; begin <= high; length++) {
    const from = begin > low ? begin : low
    const to = end < high ? end : high
    if (from <= to)
      for (const digits of digitsBetween(from, to, length))
        choices.push(writeDigits(digits, fraction))
    begin = end + 1n
    end = end * 10n + 9n
  }
  return choices
}

function between(low: bigint, high: bigint, fraction: number): string[] {
  const choices: string[] = []
  if (low < 0n) {
    const least = high < 0n ? -high : 1n
    for (const choice of positive(least, -low, fraction)) choices.push(`"-" ${choice}`)
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

/** Choices of the EBNF; none: no number that can be written fits. */
export function numberRange(bounds: NumberBounds, isInteger: boolean): string[] {
  const integers = between(...scaledRange(bounds, 0), 0)
  if (isInteger) return integers
  const decimals = Math.max(
    DEFAULT_FRACTION,
    ...Object.values(bounds).map((bound) => decimalsOf(bound as number | undefined)),
  )
  const fraction = Math.min(MAX_FRACTION, decimals)
  return [...integers, ...between(...scaledRange(bounds, fraction), fraction)]
}
