/** The HTTP surface on the demo model: shapes, order of events, options, refusals. */

import { readFileSync } from 'node:fs'
import { Ajv2020 } from 'ajv/dist/2020.js'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Engine } from '../../lib/engine/engine.ts'
import type { GenerateChunk } from '../../lib/engine/types.ts'
import { createServer } from '../../lib/server/server.ts'
import type { ServedEngine } from '../../lib/server/types.ts'
import {
  eventsOf,
  expectBaseline,
  FOLDER,
  post,
  type Reply,
  type Running,
  send,
  serveDemo,
  type Wire,
} from './support.ts'

interface ExpectedCase {
  readonly prompt?: string
  readonly messages?: readonly { readonly role: string; readonly content: string }[]
  readonly tools?: readonly unknown[]
  readonly text: string
}

const CASES: readonly ExpectedCase[] = JSON.parse(
  readFileSync(`${FOLDER}/expected.json`, 'utf8'),
).cases
const STORY = CASES.find(({ prompt }) => prompt !== undefined)!
const CHAT = CASES.find(({ messages, tools }) => messages !== undefined && tools === undefined)!
const TOOL = CASES.find(({ tools }) => tools !== undefined)!
const QUESTION = { messages: [{ role: 'user', content: 'What is 3 + 4?' }] }

let running: Running
let api: Wire
const ajv = new Ajv2020({ allowUnionTypes: true })

beforeAll(async () => {
  running = await serveDemo()
  api = (await send(`${running.url}/openapi.json`)).json
})
afterAll(() => running.close())

const chat = (body: object) => post(`${running.url}/v1/chat/completions`, body)
const complete = (body: object) => post(`${running.url}/v1/completions`, body)

function expectSchema(name: string, value: unknown): void {
  const validate = ajv.compile(api.components.schemas[name])
  expect(validate(value) || validate.errors).toBe(true)
}

function expectError({ status, json }: Reply, expected: number, code: string): void {
  expectSchema('Error', json)
  expect([status, json.error.code]).toEqual([expected, code])
}

/** Checks every chunk and the order of events; returns them without `[DONE]`. */
function streamOf({ status, headers, text }: Reply, schema: string): Wire[] {
  expect(status).toBe(200)
  expect(headers.get('content-type')).toMatch(/^text\/event-stream/)
  const data = eventsOf(text)
  expect(data.pop()).toBe('[DONE]')
  const events = data.map((event) => JSON.parse(event) as Wire)
  for (const event of events) expectSchema(schema, event)
  const constant = events.map(({ id, created, model }) => `${id} ${created} ${model}`)
  expect(new Set(constant).size).toBe(1)
  return events
}

/** `engine`, that says of the second of two choices that it is queued when the first is ready. */
function openLate(
  engine: Engine,
  isReady: (chunk: GenerateChunk) => boolean,
  pin: ServedEngine['pin'],
): ServedEngine {
  return {
    info: engine.info,
    tokenizer: engine.tokenizer,
    tokenize: (request) => engine.tokenize(request),
    stats: () => engine.stats(),
    recentSteps: () => engine.recentSteps(),
    pin,
    dispatch(request, handler) {
      let tellSecond = () => {}
      const onQueued = (id: number, index: number) => {
        if (index === 0) request.onQueued?.(id, index)
        else tellSecond = () => request.onQueued?.(id, index)
      }
      engine.dispatch(
        { ...request, onQueued },
        {
          onChunk(index, chunk) {
            handler.onChunk(index, chunk)
            if (index !== 0 || !isReady(chunk)) return
            tellSecond()
            tellSecond = () => {}
          },
          onError: (index, error) => handler.onError(index, error),
        },
      )
    },
  }
}

describe('chat completions', () => {
  it('answer like the reference', async () => {
    const { status, json, headers } = await chat({ ...CHAT, temperature: 0 })
    expect(status).toBe(200)
    expect(headers.get('x-request-id')).toMatch(/^[\w-]{36}$/)
    expectSchema('ChatCompletion', json)
    expect(json.choices[0].message.content).toBe(CHAT.text)
    expect(json.choices[0].finish_reason).toBe('stop')
    expect(json.usage.total_tokens).toBe(json.usage.prompt_tokens + json.usage.completion_tokens)
  })

  it('stream role, content, finish, usage, [DONE], in this order', async () => {
    const reply = await chat({ ...CHAT, stream: true, stream_options: { include_usage: true } })
    const events = streamOf(reply, 'ChatChunk')
    expect(events[0].choices[0].delta).toEqual({ role: 'assistant', content: '' })
    const usage = events.pop()!
    expect(usage.choices).toEqual([])
    expect(usage.usage.completion_tokens).toBeGreaterThan(10)
    for (const event of events) expect(event.usage).toBe(null)
    const last = events.pop()!
    expect(last.choices[0]).toMatchObject({ delta: {}, finish_reason: 'stop' })
    expect(events.map((event) => event.choices[0].delta.content).join('')).toBe(CHAT.text)
    expect(events.every((event) => event.choices[0].finish_reason === null)).toBe(true)
  })

  it('have no usage in chunks unless asked', async () => {
    const events = streamOf(await chat({ ...QUESTION, stream: true }), 'ChatChunk')
    expect(events.filter((event) => 'usage' in event)).toEqual([])
  })

  it('call tools, streamed and whole, and read their results', async () => {
    const request = { messages: TOOL.messages, tools: TOOL.tools }
    const { json } = await chat(request)
    expectSchema('ChatCompletion', json)
    const [{ message, finish_reason: reason }] = json.choices
    expect(reason).toBe('tool_calls')
    expect(message.content).toBe(null)
    const [call] = message.tool_calls
    expect(call.function.name).toBe('get_weather')
    expect(JSON.parse(call.function.arguments)).toEqual({ city: 'Paris' })

    const events = streamOf(await chat({ ...request, stream: true }), 'ChatChunk')
    expect(events.pop()!.choices[0].finish_reason).toBe('tool_calls')
    const deltas = events.flatMap((event) => event.choices[0].delta.tool_calls ?? [])
    expect(deltas[0]).toMatchObject({
      index: 0,
      type: 'function',
      function: { name: 'get_weather', arguments: '' },
    })
    const rest = deltas.slice(1).map((delta) => delta.function.arguments)
    expect(rest.length).toBeGreaterThan(1)
    expect(rest.join('')).toBe(call.function.arguments)

    const messages = [
      ...TOOL.messages!,
      message,
      { role: 'tool', tool_call_id: call.id, content: '{"sky": "sunny", "celsius": 21}' },
    ]
    const answer = (await chat({ messages, tools: TOOL.tools })).json
    expect(answer.choices[0].finish_reason).toBe('stop')
    expect(answer.choices[0].message.content.length).toBeGreaterThan(5)
  })

  it('keep the KV of turns that call tools, and of no others', async () => {
    const other = await serveDemo({ toolPinTtlMs: 60_000 })
    try {
      const url = `${other.url}/v1/chat/completions`
      const pinned = () => other.engine.stats().kvBlocks.pinned
      const call = { messages: TOOL.messages, tools: TOOL.tools }
      await post(url, { ...QUESTION, max_tokens: 20 })
      await post(url, { ...call, pin_ttl_ms: 0 })
      expect(pinned()).toBe(0)
      const { json } = await post(url, call)
      expect(json.choices[0].finish_reason).toBe('tool_calls')
      const whole = pinned()
      expect(whole).toBeGreaterThan(0)
      await post(url, { ...call, stream: true, n: 2 })
      expect(pinned()).toBe(3 * whole)
    } finally {
      await other.close()
    }
    expect(() => createServer(running.engine, { toolPinTtlMs: -1 })).toThrow('toolPinTtlMs')
  })

  it('keep the KV of turns that call tools before anybody has read them', async () => {
    const engine = await Engine.load(FOLDER, { precision: 'f32', threads: 2 })
    const pins: (readonly [id: number, ttlMs: number])[] = []
    const lateEngine = (isReady: (chunk: GenerateChunk) => boolean) =>
      openLate(engine, isReady, (id, ttlMs) => {
        const isPinned = engine.pin(id, ttlMs)
        if (isPinned) pins.push([id, ttlMs])
        return isPinned
      })
    const askOf = async (served: ServedEngine, body: object) => {
      const server = createServer(served, { logLevel: 'silent', toolPinTtlMs: 60_000 })
      const url = `${await server.listen(0)}/v1/chat/completions`
      const reply = await post(url, { ...body, stream: true, n: 2 })
      await server.close()
      return streamOf(reply, 'ChatChunk').at(-1)?.choices[0].finish_reason
    }
    const call = { messages: TOOL.messages, tools: TOOL.tools }
    try {
      const atStart = lateEngine(() => true)
      const atEnd = lateEngine(({ finishReason }) => finishReason !== undefined)
      expect(await askOf(atEnd, CHAT)).toBe('stop')
      expect(engine.stats().kvBlocks.pinned).toBe(0)
      expect(await askOf(atEnd, call)).toBe('tool_calls')
      // Of both choices, the first of which had ended by then.
      expect(new Set(pins.map(([id]) => id)).size).toBe(2)
      expect(engine.stats().kvBlocks.pinned).toBeGreaterThan(0)
      // Read in time, and no call yet: not kept any more, until there is one.
      pins.length = 0
      expect(await askOf(atStart, call)).toBe('tool_calls')
      const ofFirst = pins.filter(([id]) => id === pins[0][0]).map(([, ttlMs]) => ttlMs)
      expect(ofFirst).toEqual([60_000, 0, 60_000])
    } finally {
      await engine.close()
    }
  })

  it('offer no tools with tool_choice none', async () => {
    const { json } = await chat({ ...TOOL, tool_choice: 'none' })
    expect(json.choices[0].message.tool_calls).toBe(undefined)
    const plain = (await chat({ messages: TOOL.messages })).json
    expect(json.choices[0].message.content).toBe(plain.choices[0].message.content)
  })

  it('join text parts, and read developer as system', async () => {
    const parts = [{ type: 'text', text: 'What is 3 + 4?' }]
    const whole = await chat(QUESTION)
    const { json } = await chat({ messages: [{ role: 'user', content: parts }] })
    expect(json.choices[0].message.content).toBe(whole.json.choices[0].message.content)
    const as = async (role: string) =>
      (await chat({ messages: [{ role, content: 'Be brief.' }, ...QUESTION.messages] })).json
    const developer = await as('developer')
    const system = await as('system')
    expect(developer.choices).toEqual(system.choices)
    expect(developer.usage.prompt_tokens).toBe(system.usage.prompt_tokens)
  })

  it('give n choices, each with a seed of its own', async () => {
    const request = { ...CHAT, n: 3, temperature: 1.5, seed: 11, max_tokens: 24 }
    const first = (await chat(request)).json
    expectSchema('ChatCompletion', first)
    const texts = first.choices.map((choice) => choice.message.content)
    expect(new Set(texts).size).toBe(3)
    const events = streamOf(await chat({ ...request, stream: true }), 'ChatChunk')
    const streamed = ['', '', '']
    for (const { choices } of events) streamed[choices[0].index] += choices[0].delta.content ?? ''
    expect(streamed).toEqual(texts)
    const alone = (await chat({ ...request, n: 1 })).json
    expect(alone.choices[0].message.content).toBe(texts[0])
    expect(first.usage.prompt_tokens).toBe(alone.usage.prompt_tokens)
    expect(first.usage.completion_tokens).toBe(72)
  })

  it('give log-probabilities of every token of the content', async () => {
    const request = { ...QUESTION, logprobs: true, top_logprobs: 3 }
    const { json } = await chat(request)
    expectSchema('ChatCompletion', json)
    const { content } = json.choices[0].logprobs!
    expect(content.map(({ token }) => token).join('')).toBe(json.choices[0].message.content)
    for (const { token, logprob, bytes, top_logprobs: top } of content) {
      expect(Buffer.from(bytes).toString()).toBe(token)
      expect(top).toHaveLength(3)
      expect(top[0].logprob).toBeGreaterThanOrEqual(logprob)
    }
    const events = streamOf(await chat({ ...request, stream: true }), 'ChatChunk')
    const streamed = events.flatMap((event) => event.choices[0]?.logprobs?.content ?? [])
    expect(streamed.map(({ token }) => token)).toEqual(content.map(({ token }) => token))
    expect(events.pop()!.choices[0].logprobs).toBe(null)
  })

  it('obey stop, max_tokens, logit_bias, min_tokens, ignore_eos and stop_token_ids', async () => {
    const stopped = (await chat({ ...CHAT, stop: ['yellow', 'golden'] })).json.choices[0]
    expect(stopped.finish_reason).toBe('stop')
    expect(stopped.message.content).toBe(CHAT.text.split(/yellow|golden/)[0])
    const short = (await chat({ ...CHAT, max_tokens: 99, max_completion_tokens: 5 })).json
    expect([short.usage.completion_tokens, short.choices[0].finish_reason]).toEqual([5, 'length'])
    const { tokens } = (await post(`${running.url}/tokenize`, { prompt: ' the' })).json
    const token = tokens.at(-1)!
    const biased = await chat({ ...CHAT, logit_bias: { [token]: 100 }, max_tokens: 3 })
    expect(biased.json.choices[0].message.content).toBe(' the the the')
    const long = await chat({ ...QUESTION, ignore_eos: true, max_tokens: 40 })
    expect(long.json.usage.completion_tokens).toBe(40)
    const least = await chat({ ...QUESTION, min_tokens: 30, max_tokens: 40 })
    expect(least.json.usage.completion_tokens).toBeGreaterThanOrEqual(30)
    const byToken = await chat({
      ...CHAT,
      logit_bias: { [token]: 100 },
      stop_token_ids: [token],
    })
    expect(byToken.json.choices[0]).toMatchObject({ finish_reason: 'stop' })
    expect(byToken.json.usage.completion_tokens).toBe(1)
  })

  it('ignore unknown fields and take null for absent', async () => {
    const { status, json } = await chat({
      ...QUESTION,
      model: null,
      stop: null,
      seed: null,
      tools: null,
      temperature: null,
      max_tokens: null,
      stream_options: null,
      user: 'x',
      metadata: { __proto__: null, deep: [{}] },
      response_format: { type: 'text' },
      tool_choice: 'auto',
    })
    expect(status).toBe(200)
    expectSchema('ChatCompletion', json)
  })
})

describe('text completions', () => {
  it('continue like the reference, streamed and whole', async () => {
    const request = { prompt: STORY.prompt, temperature: 0, max_tokens: 200 }
    const { json } = await complete(request)
    expectSchema('Completion', json)
    expect(json.choices[0].text).toBe(STORY.text)
    const events = streamOf(await complete({ ...request, stream: true }), 'CompletionChunk')
    expect(events.map((event) => event.choices[0].text).join('')).toBe(STORY.text)
    expect(events.pop()!.choices[0].finish_reason).toBe('stop')
  })

  it('take many prompts, as text or ids, 16 tokens each by default', async () => {
    const { tokens } = (await post(`${running.url}/tokenize`, { prompt: STORY.prompt })).json
    const { json } = await complete({ prompt: [tokens, tokens], n: 2 })
    expectSchema('Completion', json)
    expect(json.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3])
    expect(new Set(json.choices.map(({ text }) => text)).size).toBe(1)
    expect(json.usage).toMatchObject({
      prompt_tokens: 2 * tokens.length,
      completion_tokens: 64,
    })
    const texts = await complete({ prompt: [STORY.prompt, 'In a cave'], max_tokens: 16 })
    expect(texts.json.choices[0].text).toBe(json.choices[0].text)
    expect((await complete({ prompt: tokens })).json.choices[0].text).toBe(json.choices[0].text)
  })

  it('give log-probabilities', async () => {
    const request = { prompt: STORY.prompt, logprobs: 2, max_tokens: 6 }
    const { json } = await complete(request)
    expectSchema('Completion', json)
    const {
      tokens,
      token_logprobs: own,
      top_logprobs: top,
      text_offset: offsets,
    } = json.choices[0].logprobs!
    expect(tokens.join('')).toBe(json.choices[0].text)
    expect(offsets[1]).toBe(tokens[0].length)
    tokens.forEach((token, at) => {
      expect(top[at][token]).toBe(own[at])
    })
    const events = streamOf(await complete({ ...request, stream: true }), 'CompletionChunk')
    const streamed = events.flatMap((event) => event.choices[0].logprobs?.text_offset ?? [])
    expect(streamed).toEqual(offsets)
  })
})

describe('many at once', () => {
  it('200 streams give what one gives', async () => {
    const request = { prompt: STORY.prompt, temperature: 0, max_tokens: 24, stream: true }
    const textOf = (reply: Reply) =>
      streamOf(reply, 'CompletionChunk')
        .map((event) => event.choices[0].text)
        .join('')
    const alone = textOf(await complete(request))
    expect(STORY.text.startsWith(alone)).toBe(true)
    const all = await Promise.all(Array.from({ length: 200 }, () => complete(request)))
    expect(new Set(all.map(textOf))).toEqual(new Set([alone]))
    await expectBaseline(running)
  })
})

describe('other routes', () => {
  it('match their schemas', async () => {
    const get = async (path: string) => (await send(running.url + path)).json
    expectSchema('ModelList', await get('/v1/models'))
    expectSchema('Model', await get('/v1/models/tiny-dense'))
    expectSchema('Health', await get('/health'))
    expectSchema('Health', await get('/ready'))
    expectSchema('Version', await get('/version'))
    expectSchema('Stats', await get('/stats'))
    await chat(QUESTION)
    const recent = await get('/steps')
    expectSchema('RecentSteps', recent)
    expect(recent.steps.length).toBeGreaterThan(0)
    expect(api.openapi).toBe('3.1.0')
  })

  it('tokenize and detokenize', async () => {
    const tokenize = (body: object) => post(`${running.url}/tokenize`, body)
    const { json } = await tokenize({ prompt: 'Once upon', add_special_tokens: false })
    expectSchema('Tokenized', json)
    const back = await post(`${running.url}/detokenize`, { tokens: json.tokens })
    expectSchema('Detokenized', back.json)
    expect(back.json.prompt).toBe('Once upon')
    const messages = await tokenize(QUESTION)
    expect(messages.json.count).toBe((await chat(QUESTION)).json.usage.prompt_tokens)
    expectError(await tokenize({}), 400, 'invalid_value')
    expectError(await tokenize({ ...QUESTION, prompt: 'x' }), 400, 'invalid_value')
  })

  it('count under the names of vLLM', async () => {
    const read = async (name: string) => {
      const { text } = await send(`${running.url}/metrics`)
      const line = text.split('\n').find((candidate) => candidate.startsWith(`${name}{`))
      return Number(line?.split(' ').at(-1))
    }
    const generated = await read('vllm:generation_tokens_total')
    const { usage } = (await complete({ prompt: 'Once', max_tokens: 7 })).json
    expect(usage.completion_tokens).toBe(7)
    expect(await read('vllm:generation_tokens_total')).toBe(generated + 7)
    for (const name of [
      'vllm:num_requests_running',
      'vllm:num_requests_waiting',
      'vllm:kv_cache_usage_perc',
    ])
      expect(await read(name)).toBe(0)
    for (const name of [
      'vllm:prompt_tokens_total',
      'vllm:prefix_cache_queries_total',
      'vllm:time_to_first_token_seconds_count',
      'vllm:inter_token_latency_seconds_count',
      'vllm:request_time_per_output_token_seconds_count',
      'vllm:e2e_request_latency_seconds_count',
      'vllm:cache_config_info',
      'vllm:request_success_total',
      'nanoweave:step_run_seconds_total',
      'nanoweave:step_queue_seconds_total',
    ])
      expect(await read(name)).toBeGreaterThan(0)
  })

  it('pass a request id on, if it may be logged', async () => {
    const idOf = async (id: string) =>
      (await send(`${running.url}/health`, { headers: { 'x-request-id': id } })).headers.get(
        'x-request-id',
      )
    expect(await idOf('my-id.7')).toBe('my-id.7')
    expect(await idOf('a b')).toMatch(/^[\w-]{36}$/)
  })
})

describe('refusals', () => {
  const refused: readonly (readonly [object, string, string | null])[] = [
    [{ messages: [] }, 'invalid_value', 'messages'],
    [{ prompt: 'x' }, 'invalid_value', null],
    [{ messages: [{ role: 'robot', content: '' }] }, 'invalid_value', 'messages[0].role'],
    [{ ...QUESTION, n: 17 }, 'invalid_value', 'n'],
    [{ ...QUESTION, n: '1' }, 'invalid_value', 'n'],
    [{ ...QUESTION, temperature: -1 }, 'invalid_value', 'temperature'],
    [{ ...QUESTION, stop: ['a', 'b', 'c', 'd', 'e'] }, 'invalid_value', 'stop'],
    [{ ...QUESTION, top_logprobs: 21, logprobs: true }, 'invalid_value', 'top_logprobs'],
    [{ ...QUESTION, top_logprobs: 2 }, 'invalid_value', 'top_logprobs'],
    [{ ...QUESTION, logit_bias: { a: 1 } }, 'invalid_value', 'logit_bias'],
    [{ ...QUESTION, logit_bias: { 999999: 1 } }, 'invalid_value', null],
    [{ ...QUESTION, deadline_ms: 0 }, 'invalid_value', 'deadline_ms'],
    [{ ...QUESTION, max_tokens: 4096 }, 'context_length_exceeded', null],
    [
      { messages: [{ role: 'user', content: 'x'.repeat(70_000) }] },
      'context_length_exceeded',
      'messages',
    ],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }] },
      'unsupported_content',
      'messages[0].content[0]',
    ],
    [
      { ...QUESTION, response_format: { type: 'structural_tag' } },
      'unsupported_response_format',
      'response_format',
    ],
    [{ ...QUESTION, response_format: { type: 'json_schema' } }, 'invalid_value', 'response_format'],
    [
      { ...QUESTION, response_format: { type: 'json_object' }, guided_regex: 'a' },
      'invalid_value',
      'guided_regex',
    ],
    [{ ...QUESTION, guided_regex: '(?=a)' }, 'invalid_value', 'guided_regex'],
    [{ ...QUESTION, guided_grammar: 'root ::= (' }, 'invalid_value', 'guided_grammar'],
    [{ ...QUESTION, guided_json: '{' }, 'invalid_value', 'guided_json'],
    [{ ...QUESTION, guided_json: { multipleOf: 2 } }, 'invalid_value', 'guided_json'],
    [{ ...QUESTION, guided_choice: ['a'], min_tokens: 3 }, 'invalid_value', null],
    [{ ...QUESTION, tool_choice: 'required' }, 'invalid_value', 'tool_choice'],
    [{ ...TOOL, tool_choice: { type: 'custom' } }, 'unsupported_tool_choice', 'tool_choice'],
    [
      { ...TOOL, tool_choice: { type: 'function', function: { name: 'no such tool' } } },
      'invalid_value',
      'tool_choice',
    ],
    [{ ...QUESTION, chat_template_kwargs: { messages: [] } }, 'invalid_value', null],
    [
      { messages: Array.from({ length: 4097 }, () => QUESTION.messages[0]) },
      'invalid_value',
      'messages',
    ],
    [
      { ...QUESTION, tools: Array.from({ length: 129 }, () => TOOL.tools![0]) },
      'invalid_value',
      'tools',
    ],
  ]
  it.each(refused)('of case %#', async (body, code, param) => {
    const reply = await chat(body)
    expectError(reply, 400, code)
    expect(reply.json.error.param).toBe(param)
    expectError(await chat({ ...body, stream: true }), 400, code)
  })

  it('of completions', async () => {
    expectError(await complete({}), 400, 'invalid_value')
    expectError(await complete({ prompt: [] }), 400, 'invalid_value')
    expectError(await complete({ prompt: [99999] }), 400, 'invalid_value')
    expectError(await complete({ prompt: 'x', echo: true }), 400, 'unsupported_parameter')
    expectError(await complete({ prompt: 'x', best_of: 3 }), 400, 'unsupported_parameter')
    const many = Array.from({ length: 64 }, () => 'x')
    expectError(await complete({ prompt: many, n: 3 }), 400, 'invalid_value')
  })

  it('of models, paths, media types and embeddings', async () => {
    expectError(await chat({ ...QUESTION, model: 'gpt-9' }), 404, 'model_not_found')
    expectError(await send(`${running.url}/v1/models/x/y`), 404, 'model_not_found')
    expectError(await send(`${running.url}/v1/chat/completions`), 404, 'not_found')
    expectError(await send(`${running.url}/%zz`), 400, 'invalid_url')
    const url = `${running.url}/v1/chat/completions`
    const text = await send(url, { method: 'POST', body: JSON.stringify(QUESTION) })
    expectError(text, 415, 'unsupported_media_type')
    const embeddings = await post(`${running.url}/v1/embeddings`, { input: 'x' })
    expectError(embeddings, 400, 'embeddings_not_supported')
  })

  it('of bodies: not JSON, not UTF-8, too deep, too large', async () => {
    const url = `${running.url}/v1/chat/completions`
    for (const body of ['', '{', '{"messages": }', 'null x', '{"a": 1,}'])
      expectError(await post(url, body), 400, 'invalid_json')
    const bytes = await send(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: Buffer.from([0x22, 0xff, 0x22]),
    })
    expectError(bytes, 400, 'invalid_json')
    expectError(await post(url, '['.repeat(65)), 400, 'json_too_deep')
    expectError(await post(url, '{"a":'.repeat(1_000_000)), 400, 'json_too_deep')
    expectError(await post(url, `${'['.repeat(64)}${']'.repeat(64)}`), 400, 'invalid_value')
    expectError(await post(url, `"${'['.repeat(200)}"`), 400, 'invalid_value')
    expectError(await post(url, `"${'x'.repeat(8 * 2 ** 20)}"`), 413, 'body_too_large')
    expect((await chat(QUESTION)).status).toBe(200)
  })

  it('leave nothing behind', () => expectBaseline(running))
})
