/** API keys: compared by digest in constant time, so that time tells nothing of a key or its length. */

import { createHash, timingSafeEqual } from 'node:crypto'

export type KeyCheck = (authorization: string | undefined) => boolean

const digest = (text: string): Buffer => createHash('sha256').update(text).digest()

/** No keys: everything passes. */
export function createKeyCheck(keys: readonly string[]): KeyCheck {
  const digests = keys.map(digest)
  return (authorization) => {
    if (digests.length === 0) return true
    const match = /^Bearer +(\S+) *$/i.exec(authorization ?? '')
    const given = digest(match?.[1] ?? '')
    let known = false
    // Every key is compared: which one matched must not show either.
    for (const expected of digests) known = timingSafeEqual(given, expected) || known
    return known && match !== null
  }
}
