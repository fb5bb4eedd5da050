/** Random JSON schemas whose texts are short, so that an output can reach its end. */

import type { Random } from './random.ts'

type Schema = Record<string, unknown>

const NAMES = ['a', 'b', 'id', 'name', 'a b', 'é"\\', 'naïve', 'x-y', '$ref', '']
const PATTERNS = [
  '^[a-f]{2,4}$',
  '\\d{3}-\\d{2}',
  '^(yes|no|may"be)$',
  '[^x"]{1,3}z?',
  '^\\\\?\\w$',
]
const FORMATS = ['date', 'time', 'date-time', 'uuid', 'ipv4', 'email']

const pick = <T>(random: Random, list: readonly T[]): T => list[random.int(0, list.length - 1)]!

function stringSchema(random: Random): Schema {
  const least = random.int(0, 3)
  return pick<() => Schema>(random, [
    () => ({ type: 'string', minLength: least, maxLength: least + random.int(0, 6) }),
    () => ({ type: 'string', pattern: pick(random, PATTERNS) }),
    () => ({ type: 'string', format: pick(random, FORMATS) }),
    () => ({ enum: ['red', 'green"', 'bl\\ue', 'ü\n'].slice(0, random.int(1, 4)) }),
  ])()
}

function numberSchema(random: Random): Schema {
  const type = pick(random, ['integer', 'number'])
  const decimals = type === 'integer' ? 0 : random.int(0, 3)
  const round = (value: number) => Number(value.toFixed(decimals))
  const low = round(random.int(-5000, 5000) / pick(random, [1, 10, 1000]))
  const high = round(low + random.int(1, 3000) / pick(random, [1, 10]) + 1)
  return pick<() => Schema>(random, [
    () => ({ type, minimum: low, maximum: high }),
    () => ({ type, exclusiveMinimum: low, exclusiveMaximum: high + 1 }),
    () => ({ type, minimum: low }),
    () => ({ type, exclusiveMaximum: high }),
    () => ({ type }),
  ])()
}

function arraySchema(random: Random, depth: number): Schema {
  const least = random.int(0, 2)
  return pick<() => Schema>(random, [
    () => ({
      type: 'array',
      items: randomSchema(random, depth - 1),
      minItems: least,
      maxItems: least + random.int(0, 2),
    }),
    () => ({
      type: 'array',
      prefixItems: [randomSchema(random, depth - 1), randomSchema(random, 0)],
      items: false,
      minItems: random.int(0, 2),
    }),
    () => ({
      type: 'array',
      prefixItems: [randomSchema(random, 0)],
      items: randomSchema(random, depth - 1),
      minItems: random.int(0, 3),
      maxItems: 3,
    }),
  ])()
}

function objectSchema(random: Random, depth: number): Schema {
  const names = NAMES.filter(() => random.int(0, 2) === 0).slice(0, 4)
  const properties = Object.fromEntries(
    names.map((name) => [name, randomSchema(random, depth - 1)]),
  )
  return {
    type: 'object',
    properties,
    required: names.filter(() => random.int(0, 1) === 0),
    ...(random.int(0, 2) > 0 && { additionalProperties: false }),
  }
}

export function randomSchema(random: Random, depth: number): Schema {
  const leaves = [
    () => stringSchema(random),
    () => numberSchema(random),
    () => ({ type: pick(random, ['boolean', 'null']) }),
    () => ({ const: pick<unknown>(random, [1, 'x"y', null, { k: [1, 'é'] }, false]) }),
    () => ({ type: ['string', 'null'], maxLength: 5 }),
  ]
  const branches = [
    () => objectSchema(random, depth),
    () => objectSchema(random, depth),
    () => arraySchema(random, depth),
    () => ({ anyOf: [randomSchema(random, depth - 1), randomSchema(random, 0)] }),
    () => ({ allOf: [objectSchema(random, depth), { description: 'one' }] }),
  ]
  return pick<() => Schema>(random, depth > 0 ? [...branches, ...leaves.slice(0, 2)] : leaves)()
}
