/** Mutations of JSON documents: of their text, byte by byte, and of their structure, value by value. */

import type { Random } from '../support/random.ts'

export function pick<T>(random: Random, items: readonly T[]): T {
  return items[random.int(0, items.length - 1)]!
}

/** A few bytes flipped, inserted, removed, repeated or cut off. */
export function mutateBytes(random: Random, bytes: Buffer): Buffer {
  let result = Buffer.from(bytes)
  for (let round = random.int(1, 3); round > 0; round--) {
    const at = random.int(0, Math.max(0, result.length - 1))
    const end = Math.min(result.length, at + random.int(1, 40))
    switch (random.int(0, 5)) {
      case 0:
        if (result.length > 0) result[at] = random.int(0, 255)
        break
      case 1:
        result = Buffer.concat([result.subarray(0, at), randomText(random), result.subarray(at)])
        break
      case 2:
        result = Buffer.concat([result.subarray(0, at), result.subarray(end)])
        break
      case 3:
        result = Buffer.concat([result.subarray(0, end), result.subarray(at)])
        break
      case 4:
        result = result.subarray(0, at)
        break
      default:
        if (result.length > 0) result[at] = pick(random, [...Buffer.from('"{}[],:-.0e\\ \n')])
    }
  }
  return result
}

function randomText(random: Random): Buffer {
  const texts = [
    '{',
    '[',
    '"',
    ',"a":1',
    '1e999',
    '-',
    '\\u0000',
    '\0',
    '[[[[[[[[',
    '\u{1F600}',
    'null',
  ]
  const chunk = pick(random, texts)
  return Buffer.from(chunk.repeat(random.next() < 0.05 ? 2000 : 1))
}

const NUMBERS = [
  0,
  -0,
  1,
  -1,
  2,
  3,
  7,
  8,
  16,
  0.5,
  1.5,
  1e-320,
  255,
  65_536,
  2 ** 24,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  2 ** 40,
  2 ** 53 - 1,
  2 ** 53,
  1e18,
  1e308,
  -1e308,
]
const STRINGS = [
  '',
  'F32',
  'BF16',
  'I64',
  '__proto__',
  'constructor',
  'yarn',
  'longrope',
  'dynamic',
  '../../x',
  'x'.repeat(5000),
  '\0',
  '1',
]

/** Any JSON value, mostly a disagreeable one. */
export function randomValue(random: Random, depth = 0): unknown {
  switch (random.int(0, depth > 2 ? 3 : 6)) {
    case 0:
    case 1:
      return pick(random, NUMBERS)
    case 2:
      return pick(random, STRINGS)
    case 3:
      return pick(random, [null, true, false])
    case 4:
      return Array.from({ length: random.int(0, 9) }, () => randomValue(random, depth + 1))
    case 5:
      return { [pick(random, STRINGS)]: randomValue(random, depth + 1) }
    default:
      return Array(random.int(0, 2000)).fill(pick(random, NUMBERS))
  }
}

type Container = Record<string, unknown> | unknown[]

function containersOf(value: unknown): Container[] {
  if (typeof value !== 'object' || value === null) return []
  return [value as Container, ...Object.values(value).flatMap(containersOf)]
}

/** A copy of `document` with up to three values changed, removed, added or exchanged. */
export function mutateStructure(random: Random, document: object): object {
  const copy = structuredClone(document)
  for (let round = random.int(1, 3); round > 0; round--) {
    const container = pick(random, containersOf(copy)) as Record<string, unknown>
    const keys = Object.keys(container)
    const key = keys.length > 0 ? pick(random, keys) : 'a'
    switch (random.int(0, 5)) {
      case 0:
      case 1:
        container[key] = randomValue(random)
        break
      case 2:
        if (Array.isArray(container)) container.pop()
        else delete container[key]
        break
      case 3:
        if (typeof container[key] === 'number') container[key] += pick(random, [-1, 1, 4, 64, 0.5])
        else container[key] = pick(random, NUMBERS)
        break
      case 4:
        if (keys.length > 0) container[key] = structuredClone(container[pick(random, keys)])
        break
      default:
        Object.defineProperty(
          container,
          pick(random, [...STRINGS, 'rope_scaling', 'text_config']),
          {
            value: randomValue(random),
            enumerable: true,
            configurable: true,
            writable: true,
          },
        )
    }
  }
  return copy
}
