/** Outputs that follow a grammar: JSON schemas, regular expressions, EBNF, and what refuses to be one. */

import { fileURLToPath } from 'node:url'
import { Ajv2020 } from 'ajv/dist/2020.js'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Engine } from '../lib/engine/engine.ts'
import type { GenerateRequest, GrammarSpec } from '../lib/engine/types.ts'
import { createRandom } from './support/random.ts'
import { randomSchema } from './support/random-schema.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-dense', import.meta.url))
const MAX_TOKENS = 600
/** NANOWEAVE_SCHEMA_SAMPLES=20 for more. */
const SAMPLES = Number(process.env.NANOWEAVE_SCHEMA_SAMPLES ?? 2)
const NUM_SCHEMAS = 100

let engine: Engine
beforeAll(async () => {
  engine = await Engine.load(FOLDER, { threads: 2, maxNumSeqs: 64 })
})
afterAll(async () => {
  await engine?.close()
})

const complete = (grammar: GrammarSpec, options: GenerateRequest = {}) =>
  engine.complete({
    prompt: 'Once upon a time',
    maxTokens: MAX_TOKENS,
    temperature: 1,
    grammar,
    ...options,
  })

const codeOf = async (promise: Promise<unknown>): Promise<string> => {
  try {
    await promise
    return 'none'
  } catch (error) {
    return (error as { code: string }).code
  }
}

const FORMATS: Record<string, RegExp> = {
  date: /^\d{4}-\d\d-\d\d$/,
  time: /^\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/,
  'date-time': /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/,
  uuid: /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/,
  ipv4: /^(\d{1,3}\.){3}\d{1,3}$/,
  email: /^[^@\s]+@[^@\s]+\.[^@\s]+$/,
}

describe('JSON schemas', () => {
  test(`${NUM_SCHEMAS} random schemas: every sample validates`, { timeout: 240_000 }, async () => {
    const random = createRandom(20)
    const ajv = new Ajv2020({ strict: false, formats: FORMATS })
    let numValid = 0
    let numCut = 0
    const check = async (seed: number) => {
      const schema = randomSchema(random, 3)
      const validate = ajv.compile(schema)
      await Promise.all(
        Array.from({ length: SAMPLES }, async (_, sample) => {
          const result = await complete({ schema }, { seed: 1000 * seed + sample })
          if (result.finishReason === 'length') {
            numCut++
            return
          }
          const value: unknown = JSON.parse(result.text)
          const isValid = validate(value)
          const problem = JSON.stringify(validate.errors)
          expect(isValid, `${JSON.stringify(schema)}\n${result.text}\n${problem}`).toBe(true)
          numValid++
        }),
      )
    }
    const seeds = Array.from({ length: NUM_SCHEMAS }, (_, seed) => seed)
    while (seeds.length > 0) await Promise.all(seeds.splice(0, 8).map(check))
    expect(numValid + numCut).toBe(NUM_SCHEMAS * SAMPLES)
    // The texts are short: nothing but a loop in the grammar would be cut.
    expect(numCut).toBe(0)
  })

  test('recursion, references, free-form objects', async () => {
    const tree = {
      $defs: {
        node: {
          type: 'object',
          properties: {
            value: { type: 'integer', minimum: 0, maximum: 9 },
            next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] },
          },
          required: ['value', 'next'],
        },
      },
      $ref: '#/$defs/node',
    }
    for (let seed = 0; seed < 5; seed++) {
      const { text, finishReason } = await complete({ schema: tree }, { seed, maxTokens: 100 })
      if (finishReason === 'stop') expect(JSON.parse(text)).toHaveProperty('next')
    }
    const ajv = new Ajv2020({ strict: false })
    const open = {
      type: 'object',
      properties: { a: { type: 'null' }, ab: { type: 'boolean' } },
      required: ['a'],
      additionalProperties: { type: 'integer', minimum: 0, maximum: 99 },
    }
    for (let seed = 0; seed < 10; seed++) {
      const { text, finishReason } = await complete({ schema: open }, { seed, maxTokens: 100 })
      if (finishReason === 'stop') expect(ajv.validate(open, JSON.parse(text)), text).toBe(true)
    }
  })

  test('json: any object', async () => {
    for (const temperature of [0, 1]) {
      const { text, finishReason } = await complete({ json: true }, { temperature, seed: 3 })
      if (finishReason === 'stop') expect(typeof JSON.parse(text)).toBe('object')
      else expect(text.startsWith('{')).toBe(true)
    }
  })

  test.each<[string, unknown]>([
    ['multipleOf', { type: 'integer', multipleOf: 3 }],
    ['not', { not: { type: 'string' } }],
    ['else', { if: {}, else: { type: 'string' } }],
    ['uniqueItems', { type: 'array', items: { type: 'null' }, uniqueItems: true }],
    ['patternProperties', { type: 'object', patternProperties: { a: {} } }],
    ['false', false],
    ['no range', { type: 'integer', minimum: 3, maximum: 2 }],
    ['unknown type', { type: 'text' }],
    ['a reference to nothing', { $ref: '#/$defs/x' }],
    ['a reference to itself', { $ref: '#' }],
    [
      'a cycle of references',
      { $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } }, $ref: '#/$defs/a' },
    ],
    ['pattern and length', { type: 'string', pattern: 'a', maxLength: 3 }],
    ['depth', Array.from({ length: 70 }).reduce((inner) => ({ type: 'array', items: inner }), {})],
    ['bytes', { enum: ['x'.repeat(300_000)] }],
  ])('refuses %s', async (_, schema) => {
    expect(await codeOf(complete({ schema }))).toBe('ERR_USAGE')
  })
})

describe('regular expressions and EBNF', () => {
  test.each([
    '[a-c]+\\d{2,3}',
    '(foo|bar)?-[^a-z\\s]{3}',
    '^\\w{2}\\.\\x41\\u{1F600}[\\d_-]*?$',
    'é[à-ü]{2}|"quoted"',
  ])('%s', async (regex) => {
    const whole = new RegExp(`^(?:${regex})$`, 'u')
    for (let seed = 0; seed < 6; seed++) {
      const { text, finishReason } = await complete({ regex }, { seed, maxTokens: 200 })
      if (finishReason === 'stop') expect(text).toMatch(whole)
    }
  })

  test('an EBNF grammar', async () => {
    const ebnf = `root ::= greeting ", " name "!"
greeting ::= "Hello" | "Good " ("morning" | "night")
name ::= [A-Z] [a-z]{2,6}`
    for (let seed = 0; seed < 6; seed++) {
      const result = await complete({ ebnf }, { seed })
      expect(result.text).toMatch(/^(Hello|Good morning|Good night), [A-Z][a-z]{2,6}!$/)
      expect(result.finishReason).toBe('stop')
    }
  })

  test('maxTokens cuts, and says so', async () => {
    const result = await complete({ regex: '[ab]{50}' }, { maxTokens: 5 })
    expect(result.finishReason).toBe('length')
    expect(result.text).toMatch(/^[ab]+$/)
  })

  test('the same tokens whatever else runs, and constrained beside free', async () => {
    const one = () => complete({ regex: '[a-z ]{40}' }, { seed: 5 })
    const alone = await one()
    const [a, b, free] = await Promise.all([
      one(),
      one(),
      engine.complete({ prompt: 'Once', maxTokens: 60, temperature: 0 }),
    ])
    expect([a.tokens, b.tokens]).toEqual([alone.tokens, alone.tokens])
    expect(free.tokens).toHaveLength(60)
    const again = await engine.complete({ prompt: 'Once', maxTokens: 60, temperature: 0 })
    expect(again.tokens).toEqual(free.tokens)
  })

  test('log-probabilities are those without the grammar', async () => {
    const { logprobs } = await complete(
      { ebnf: 'root ::= "Q"' },
      { logprobs: true, topLogprobs: 2 },
    )
    expect(logprobs![0]!.logprob).toBeLessThan(logprobs![0]!.top[0]!.logprob)
  })

  test('what cannot be put to a worker is refused, and a refusal costs no worker', async () => {
    const cycle: Record<string, unknown> = {}
    cycle.properties = { cycle }
    const deep = JSON.parse(`${'{"items":'.repeat(5000)}{}${'}'.repeat(5000)}`)
    for (const schema of [cycle, deep, { enum: [1n] }, () => true, Symbol('x')])
      expect(await codeOf(complete({ schema }))).toBe('ERR_USAGE')
    expect(await codeOf(complete({ regex: 5 } as never))).toBe('ERR_USAGE')
    expect(await codeOf(complete({ ebnf: '' }))).toBe('ERR_USAGE')
    expect((await complete({ regex: 'after' })).text).toBe('after')
  })

  test.each<[string, GrammarSpec]>([
    ['an unclosed group', { regex: '(a' }],
    ['look-ahead', { regex: 'a(?=b)' }],
    ['a back-reference', { regex: '(a)\\1' }],
    ['an inner anchor', { regex: 'a$b' }],
    ['malformed EBNF', { ebnf: 'root ::= (' }],
    ['a rule that is not there', { ebnf: 'root ::= nothing' }],
    ['no root', { ebnf: 'start ::= "a"' }],
    ['a grammar that never begins', { ebnf: 'root ::= a\na ::= a' }],
    ['deep groups', { ebnf: `root ::= ${'('.repeat(5000)}"a"${')'.repeat(5000)}` }],
    ['two forms', { regex: 'a', json: true }],
    ['no form', {}],
    ['repeats of repeats', { regex: '((((a{0,4000}){0,4000}){0,4000}){0,4000})' }],
    ['EBNF repeats of repeats', { ebnf: 'root ::= ((("a"{1000}){1000}){1000}){1000}' }],
  ])('refuses %s', { timeout: 30_000 }, async (_, grammar) => {
    expect(await codeOf(complete(grammar))).toBe('ERR_USAGE')
  })

  test('refuses what contradicts it', async () => {
    const grammar = { regex: 'a' }
    expect(await codeOf(complete(grammar, { minTokens: 3 }))).toBe('ERR_USAGE')
    expect(await codeOf(complete(grammar, { ignoreEos: true }))).toBe('ERR_USAGE')
  })
})

describe('lifetime', () => {
  const baseline = () => {
    const { running, waiting, kvBlocks } = engine.stats()
    expect([running, waiting, kvBlocks.used]).toEqual([0, 0, 0])
  }

  test('hostile grammars leave other streams alone', { timeout: 60_000 }, async () => {
    const other = complete({ regex: '[a-z ]{100}' }, { seed: 1 })
    const free = engine.complete({
      prompt: 'Once',
      maxTokens: 200,
      temperature: 0,
      ignoreEos: true,
    })
    const hostile = [
      complete({ ebnf: 'root ::= (' }),
      complete({ ebnf: 'root ::= ((("b"{1000}){1000}){1000}){1000}' }),
      complete({ ebnf: `root ::= ${'(a | "x") '.repeat(20_000)}\na ::= "b" | a "c"` }),
    ].map(codeOf)
    expect((await other).text).toMatch(/^[a-z ]{100}$/)
    expect((await free).tokens).toHaveLength(200)
    expect(await Promise.all(hostile)).toEqual(['ERR_USAGE', 'ERR_USAGE', 'ERR_USAGE'])
    expect((await complete({ ebnf: 'root ::= "still here"' })).text).toBe('still here')
    baseline()
  })

  test('cancelled while compiling, waiting and running', async () => {
    const codes = await Promise.all(
      [0, 1, 20, 100].map((delayMs) => {
        const signal = delayMs === 0 ? AbortSignal.abort() : AbortSignal.timeout(delayMs)
        return codeOf(complete({ regex: `[a-z]{400}${delayMs}` }, { signal, maxTokens: 5000 }))
      }),
    )
    for (const code of codes) expect(['ERR_ABORTED', 'none']).toContain(code)
    expect(codes[0]).toBe('ERR_ABORTED')
    baseline()
  })

  test('closing ends the workers and fails what runs', async () => {
    const own = await Engine.load(FOLDER, { threads: 1 })
    const request = { prompt: 'a', maxTokens: 500, grammar: { regex: '[a-z]{900}' } }
    const running = own.complete(request)
    const code = codeOf(running)
    await new Promise((resolve) => setTimeout(resolve, 50))
    await own.close()
    expect(await code).toBe('ERR_CLOSED')
    expect(await codeOf(own.complete(request))).toBe('ERR_CLOSED')
  })

  test('few blocks: preempted sequences follow their grammar to the end', async () => {
    const own = await Engine.load(FOLDER, { threads: 1, kvCacheBytes: 3 << 20, maxModelLen: 256 })
    try {
      const results = await Promise.all(
        Array.from({ length: 12 }, (_, seed) =>
          own.complete({
            prompt: `Story ${seed}`,
            maxTokens: 240,
            temperature: 1,
            seed,
            grammar: { regex: '([a-z]{1,6} ){40}end' },
          }),
        ),
      )
      for (const { text, finishReason } of results)
        if (finishReason === 'stop') expect(text).toMatch(/^([a-z]{1,6} ){40}end$/)
        else expect(text).toMatch(/^[a-z ]+$/)
    } finally {
      await own.close()
    }
  })
})
