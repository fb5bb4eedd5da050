/** JSON bodies from clients: valid UTF-8, bounded depth, checked before anything recurses. */

import { badRequest } from './api-error.ts'

const QUOTE = 0x22
const BACKSLASH = 0x5c
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const OPEN_BRACE = 0x7b
const CLOSE_BRACE = 0x7d

const decoder = new TextDecoder('utf-8', { fatal: true })

/** Throws ApiError `json_too_deep` or `invalid_json`. */
export function parseJsonBody(body: Uint8Array, maxDepth: number): unknown {
  if (exceedsDepth(body, maxDepth))
    throw badRequest('json_too_deep', `the body nests deeper than ${maxDepth} levels`)
  try {
    return JSON.parse(decoder.decode(body))
  } catch {
    throw badRequest('invalid_json', 'the body is not valid JSON in UTF-8')
  }
}

/** Counts brackets outside strings. UTF-8 never hides an ASCII byte inside another character. */
function exceedsDepth(body: Uint8Array, maxDepth: number): boolean {
  let depth = 0
  let inString = false
  for (let at = 0; at < body.length; at++) {
    const byte = body[at]
    if (inString) {
      if (byte === BACKSLASH) at++
      else if (byte === QUOTE) inString = false
    } else if (byte === QUOTE) inString = true
    else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
      if (++depth > maxDepth) return true
    } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) depth--
  }
  return false
}
