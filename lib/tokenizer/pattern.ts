/**
 * Screening of the regular expressions in a tokenizer.json. They run over client text on the
 * JavaScript thread, and the engine backtracks: a pattern made to explode would hang the process.
 * Accepted are patterns as real pre-tokenizers have them: bounded length, no unbounded repetition
 * of a group that can itself match in several ways, few unbounded repetitions per alternative,
 * no back-references. What is left costs at most a small power of the longest run of characters
 * one repetition matches.
 */

import { EngineError } from '../errors.ts'

const maxPatternLength = 16_384
const maxGroupDepth = 16
const maxUnboundedPerAlternative = 3
/** A bounded repetition beyond this counts as unbounded. */
const maxRepeat = 256

interface Group {
  /** Holds an alternation or a repetition whose count varies. */
  ambiguous: boolean
  /** Unbounded repetitions in the current alternative, and the most of any alternative. */
  unbounded: number
  most: number
}

function refuse(pattern: string, why: string): never {
  throw new EngineError(
    'ERR_TOKENIZER',
    `tokenizer.json: refusing the pattern ${JSON.stringify(pattern.slice(0, 80))}: ${why}`,
  )
}

/** Index after the character class that starts at `index`. Classes nest (Oniguruma). */
function skipClass(pattern: string, index: number): number {
  let depth = 0
  for (let i = index; i < pattern.length; i++) {
    if (pattern[i] === '\\') i++
    else if (pattern[i] === '[') depth++
    else if (pattern[i] === ']' && --depth === 0) return i + 1
  }
  return refuse(pattern, 'a character class is not closed')
}

/** Throws ERR_TOKENIZER for a pattern that could take exponential time. */
export function screenPattern(pattern: string): void {
  if (pattern.length > maxPatternLength) refuse(pattern, `longer than ${maxPatternLength}`)
  const open: Group[] = [{ ambiguous: false, unbounded: 0, most: 0 }]
  let closed: Group | undefined
  let i = 0
  while (i < pattern.length) {
    const group = open.at(-1)!
    const char = pattern[i]!
    if (char === '\\') {
      if (/[1-9k]/.test(pattern[i + 1] ?? '')) refuse(pattern, 'a back-reference')
      closed = undefined
      i += 2
    } else if (char === '[') {
      closed = undefined
      i = skipClass(pattern, i)
    } else if (char === '(') {
      open.push({ ambiguous: false, unbounded: 0, most: 0 })
      if (open.length > maxGroupDepth) refuse(pattern, `groups deeper than ${maxGroupDepth}`)
      closed = undefined
      i++
      // `(?:`, `(?=`, `(?<!`, `(?i:` …: the prefix has no quantifier in it.
      if (pattern[i] === '?') i++
    } else if (char === ')') {
      if (open.length === 1) refuse(pattern, 'unbalanced parentheses')
      closed = open.pop()!
      const parent = open.at(-1)!
      closed.most = Math.max(closed.most, closed.unbounded)
      parent.unbounded += closed.most
      parent.ambiguous ||= closed.ambiguous
      i++
    } else if (char === '|') {
      group.ambiguous = true
      group.most = Math.max(group.most, group.unbounded)
      group.unbounded = 0
      closed = undefined
      i++
    } else {
      const quantifier = /^(?:[*+?]|\{(\d*)(,?)(\d*)\})[?+]?/.exec(pattern.slice(i, i + 24))
      if (quantifier === null || quantifier[0] === '{}') {
        closed = undefined
        i++
        continue
      }
      const [text, low, comma, high] = quantifier
      const counted = text[0] === '{'
      const exact = counted && comma === ''
      const most = exact ? Number(low) : high === '' || !counted ? Infinity : Number(high)
      const isUnbounded = text[0] !== '?' && most > maxRepeat
      if (isUnbounded && closed?.ambiguous) refuse(pattern, 'a repetition inside a repetition')
      if (isUnbounded && ++group.unbounded > maxUnboundedPerAlternative) {
        refuse(pattern, `more than ${maxUnboundedPerAlternative} unbounded repetitions in a row`)
      }
      if (counted && closed !== undefined && most > 16) refuse(pattern, 'a group repeated often')
      if (!exact) group.ambiguous = true
      closed = undefined
      i += text.length
    }
  }
  if (open.length !== 1) refuse(pattern, 'unbalanced parentheses')
  for (const group of open) {
    if (Math.max(group.most, group.unbounded) > maxUnboundedPerAlternative) {
      refuse(pattern, `more than ${maxUnboundedPerAlternative} unbounded repetitions in a row`)
    }
  }
}
