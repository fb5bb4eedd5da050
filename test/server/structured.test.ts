/** Structured output and forced tool calls over HTTP: with the clients people use, and without. */

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { ChatOpenAI } from '@langchain/openai'
import { generateObject } from 'ai'
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { expectBaseline, type Running, serveDemo } from './support.ts'

const QUESTION = 'What is 3 + 4?'
const MODEL = 'tiny-dense'
const messages = [{ role: 'user' as const, content: QUESTION }]

/** Short values, so that the demo model comes to an end. */
const Person = z.object({
  name: z.string().max(12),
  age: z.int().min(0).max(120),
  colour: z.enum(['red', 'green']),
  tags: z.array(z.string().max(5)).max(2),
  partner: z.union([z.object({ name: z.string().max(8) }), z.null()]),
})

const tool = (name: string, strict?: boolean) => ({
  type: 'function' as const,
  function: {
    name,
    ...(strict !== undefined && { strict }),
    parameters: {
      type: 'object',
      properties: { a: { type: 'integer', minimum: 0, maximum: 99 }, b: { type: 'boolean' } },
      required: ['a', 'b'],
      additionalProperties: false,
    },
  },
})
const Arguments = z.strictObject({ a: z.int().min(0).max(99), b: z.boolean() })

let running: Running
let baseURL: string
beforeAll(async () => {
  running = await serveDemo()
  baseURL = `${running.url}/v1`
})
afterAll(() => running?.close())
afterEach(() => expectBaseline(running))

const post = async (path: string, body: object) => {
  const response = await fetch(`${baseURL}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  // biome-ignore lint/suspicious/noExplicitAny: the wire's shape is what is tested
  return { status: response.status, json: (await response.json()) as any }
}

describe('openai', () => {
  const client = () => new OpenAI({ apiKey: 'none', baseURL, maxRetries: 0 })

  it('parses a zod schema', async () => {
    for (let seed = 0; seed < 5; seed++) {
      const { choices } = await client().chat.completions.parse({
        model: MODEL,
        messages,
        temperature: 1,
        seed,
        max_tokens: 400,
        response_format: zodResponseFormat(Person, 'person'),
      })
      expect(choices[0]!.finish_reason).toBe('stop')
      expect(Person.parse(choices[0]!.message.parsed)).toEqual(choices[0]!.message.parsed)
    }
  })

  it('streams JSON', async () => {
    const stream = client().chat.completions.stream({
      model: MODEL,
      messages,
      temperature: 1,
      seed: 2,
      max_tokens: 400,
      response_format: zodResponseFormat(Person, 'person'),
    })
    const { choices } = await stream.finalChatCompletion()
    expect(Person.safeParse(choices[0]!.message.parsed).success).toBe(true)
  })

  it('answers with any JSON object, several choices at once', async () => {
    const { choices, usage } = await client().chat.completions.create({
      model: MODEL,
      messages,
      temperature: 1,
      seed: 1,
      n: 4,
      max_tokens: 200,
      response_format: { type: 'json_object' },
    })
    expect(choices).toHaveLength(4)
    expect(usage!.completion_tokens).toBeGreaterThan(4)
    for (const { message, finish_reason: reason } of choices)
      if (reason === 'stop') expect(typeof JSON.parse(message.content!)).toBe('object')
      else expect(message.content!.startsWith('{')).toBe(true)
  })

  it.each([false, true])('calls a tool when it must (stream: %s)', async (isStreamed) => {
    for (const choice of [
      'required' as const,
      { type: 'function' as const, function: { name: 'second' } },
    ]) {
      const body = {
        model: MODEL,
        messages,
        temperature: 1,
        seed: 4,
        max_tokens: 900,
        tools: [tool('first'), tool('second')],
        tool_choice: choice,
      }
      const { choices } = isStreamed
        ? await client().chat.completions.stream(body).finalChatCompletion()
        : await client().chat.completions.create(body)
      const calls = choices[0]!.message.tool_calls!
      expect(choices[0]!.finish_reason).toBe('tool_calls')
      expect(choices[0]!.message.content ?? '').toBe('')
      expect(calls.length).toBeGreaterThan(0)
      if (typeof choice === 'object') expect(calls).toHaveLength(1)
      for (const call of calls) {
        if (call.type !== 'function') throw new Error(`a call of type ${call.type}`)
        const names = typeof choice === 'object' ? ['second'] : ['first', 'second']
        expect(names).toContain(call.function.name)
        expect(Arguments.safeParse(JSON.parse(call.function.arguments)).success).toBe(true)
      }
    }
  })

  it('one call only, and strict tools beside text', async () => {
    for (let seed = 0; seed < 6; seed++) {
      const forced = await client().chat.completions.create({
        model: MODEL,
        messages,
        temperature: 1,
        seed,
        max_tokens: 300,
        tools: [tool('first')],
        tool_choice: 'required',
        parallel_tool_calls: false,
      })
      expect(forced.choices[0]!.message.tool_calls).toHaveLength(1)
      const free = await client().chat.completions.create({
        model: MODEL,
        messages: [{ role: 'user', content: 'What is the weather in Paris?' }],
        temperature: 1,
        seed,
        max_tokens: 100,
        tools: [tool('first', true)],
      })
      const { message, finish_reason: reason } = free.choices[0]!
      if (reason !== 'tool_calls') expect(message.content).not.toContain('<tool_call>')
      for (const call of message.tool_calls ?? [])
        if (call.type === 'function' && reason === 'tool_calls')
          expect(Arguments.safeParse(JSON.parse(call.function.arguments)).success).toBe(true)
    }
  })
})

describe('ai', () => {
  it('generates objects', async () => {
    const provider = createOpenAICompatible({
      name: 'nanoweave',
      baseURL,
      supportsStructuredOutputs: true,
    })
    const { object } = await generateObject({
      model: provider(MODEL),
      schema: Person,
      prompt: QUESTION,
      temperature: 1,
      seed: 7,
      maxOutputTokens: 400,
      maxRetries: 0,
    })
    expect(Person.safeParse(object).success).toBe(true)
  })
})

describe('LangChain', () => {
  const model = () =>
    new ChatOpenAI({
      model: MODEL,
      apiKey: 'none',
      temperature: 1,
      maxTokens: 400,
      maxRetries: 0,
      modelKwargs: { seed: 3 },
      configuration: { baseURL },
    })

  it.each(['jsonSchema', 'functionCalling'] as const)('structured output by %s', async (method) => {
    const structured = model().withStructuredOutput(Person, { name: 'person', method })
    expect(Person.safeParse(await structured.invoke(QUESTION)).success).toBe(true)
  })
})

describe('extras', () => {
  const common = { temperature: 1, seed: 1, max_tokens: 100 }

  it('guided_regex, guided_grammar, guided_choice, guided_json, in chat and in text', async () => {
    const extras: [object, RegExp][] = [
      [{ guided_regex: '\\d{3}-[a-f]{2}' }, /^\d{3}-[a-f]{2}$/],
      [{ guided_grammar: 'root ::= "a" b\nb ::= "x" | "y"' }, /^a[xy]$/],
      [{ guided_choice: ['left', 'rig"ht'] }, /^(left|rig"ht)$/],
      [{ guided_json: { type: 'boolean' } }, /^(true|false)$/],
      [{ guided_json: '{"type": "null"}' }, /^null$/],
    ]
    for (const [extra, expected] of extras) {
      const chat = await post('/chat/completions', { ...common, ...extra, messages })
      expect(chat.json.choices?.[0].message.content, JSON.stringify(chat.json)).toMatch(expected)
      const text = await post('/completions', { ...common, ...extra, prompt: 'Once', n: 2 })
      for (const choice of text.json.choices) expect(choice.text).toMatch(expected)
    }
  })

  it('a cut answer has finish_reason length', async () => {
    const body = { ...common, max_tokens: 4, guided_regex: '[ab]{90}', messages }
    const { json } = await post('/chat/completions', body)
    expect(json.choices[0].finish_reason).toBe('length')
  })

  it('what cannot be followed is named, before any token', async () => {
    const schema = { type: 'object', properties: { a: { type: 'integer', multipleOf: 3 } } }
    const format = { type: 'json_schema', json_schema: { name: 'x', schema } }
    const strict = { ...tool('add', true) }
    const wrong = { ...tool('odd'), function: { name: 'odd', parameters: schema } }
    const cases: [object, string, RegExp][] = [
      [{ response_format: format }, 'response_format', /multipleOf.*#\/properties\/a/],
      [{ guided_json: schema }, 'guided_json', /multipleOf.*#\/properties\/a/],
      [{ guided_regex: 'a(?=b)' }, 'guided_regex', /look-ahead/],
      [{ guided_grammar: 'root ::= missing' }, 'guided_grammar', /missing/],
      [{ guided_grammar: 'root ::= [é]' }, 'guided_grammar', /beyond ASCII/],
      [{ tools: [strict, wrong] }, 'tools[1].function.parameters', /multipleOf/],
      [
        {
          tools: [strict, wrong],
          tool_choice: { type: 'function', function: { name: 'odd' } },
        },
        'tools[1].function.parameters',
        /multipleOf/,
      ],
    ]
    for (const stream of [false, true])
      for (const [extra, param, message] of cases) {
        const body = { ...common, ...extra, n: 2, stream, messages }
        const { status, json } = await post('/chat/completions', body)
        expect([status, json.error.param], JSON.stringify(json)).toEqual([400, param])
        expect(json.error.message).toMatch(message)
      }
    const text = await post('/completions', { prompt: 'a', guided_regex: '(' })
    expect([text.status, text.json.error.param]).toEqual([400, 'guided_regex'])
  })

  it('hostile grammars get 400, others their answer', { timeout: 60_000 }, async () => {
    const hostile = [
      { guided_grammar: 'root ::= ((("b"{1000}){1000}){1000}){1000}' },
      { guided_grammar: `root ::= ${'('.repeat(3000)}"a"${')'.repeat(3000)}` },
      { guided_grammar: 'root ::= missing' },
      { guided_regex: '((((a{0,4000}){0,4000}){0,4000}){0,4000})' },
      { guided_regex: '['.repeat(16_000) },
      { guided_json: { $ref: '#' } },
      {
        response_format: {
          type: 'json_schema',
          json_schema: { schema: { enum: ['x'.repeat(300_000)] } },
        },
      },
    ]
    const answers = hostile.map((extra) =>
      post('/chat/completions', { ...common, ...extra, messages }),
    )
    const other = await post('/chat/completions', {
      ...common,
      guided_regex: '[a-z]{30}',
      messages,
    })
    expect(other.json.choices[0].message.content).toMatch(/^[a-z]{30}$/)
    for (const { status, json } of await Promise.all(answers)) {
      expect(status, JSON.stringify(json)).toBe(400)
      expect(json.error.message).not.toMatch(/\.cc|Users|RuntimeError/)
    }
  })
})
