/**
 * gpt-oss as served: the golden checkpoint with a tokenizer of bytes and harmony's special tokens and
 * a template in its manner. Family, template, grammar, parser and stop tokens work together: forced
 * calls come back as tool calls, and go in again with their results.
 */

import { readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Engine } from '../../lib/index.ts'
import { createServer, type Server } from '../../lib/server/server.ts'
import { createFolder } from '../support/checkpoint-folder.ts'
import { goldenFolder } from '../support/golden.ts'

const GOLDEN = goldenFolder('gpt-oss-sinks')
const SPECIAL = ['start', 'end', 'message', 'channel', 'constrain', 'call', 'return'].map(
  (name) => `<|${name}|>`,
)
const BYTES = 256

/** As the published one: a content that is there is looked into, calls end with `<|call|>`. */
const TEMPLATE = `{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{%- if 'content' in message and '<|channel|>' in message.content %}{{ raise_exception('markers in content') }}{% endif -%}
{%- if message.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{% endif -%}
{%- for call in message.tool_calls or [] -%}
{{ '<|start|>assistant to=functions.' + call.function.name + '<|channel|>commentary json<|message|>' + call.function.arguments|tojson + '<|call|>' }}
{%- endfor -%}
{%- if message.content %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{% endif -%}
{%- else -%}
{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif -%}`

/** Every byte a token, under the characters that byte-level BPE writes bytes with; then SPECIAL. */
function tokenizer() {
  const { decoder, pre_tokenizer } = JSON.parse(
    readFileSync('test/fixtures/tokenizers/byte-level/tokenizer.json', 'utf8'),
  )
  let next = 256
  const isPrintable = (byte: number) =>
    (byte > 32 && byte < 127) || (byte > 160 && byte < 173) || byte > 173
  const letters = Array.from({ length: BYTES }, (_, byte) =>
    String.fromCodePoint(isPrintable(byte) ? byte : next++),
  )
  const added_tokens = SPECIAL.map((content, index) => ({
    ...{ id: BYTES + index, content, special: true, normalized: false },
    ...{ single_word: false, lstrip: false, rstrip: false },
  }))
  const vocab = Object.fromEntries(letters.map((letter, byte) => [letter, byte]))
  const model = { type: 'BPE', vocab, merges: [], byte_fallback: false }
  return { version: '1.0', added_tokens, normalizer: null, pre_tokenizer, decoder, model }
}

const TOOL = {
  type: 'function',
  function: {
    name: 'get_weather',
    strict: true,
    parameters: {
      type: 'object',
      properties: { days: { type: 'integer', minimum: 0, maximum: 99 }, now: { type: 'boolean' } },
      required: ['days', 'now'],
      additionalProperties: false,
    },
  },
}

let folder: ReturnType<typeof createFolder>
let engine: Engine
let server: Server
let url: string
beforeAll(async () => {
  const stops = ['<|return|>', '<|call|>'].map((token) => BYTES + SPECIAL.indexOf(token))
  const config = JSON.parse(readFileSync(join(GOLDEN, 'config.json'), 'utf8'))
  folder = createFolder({
    'config.json': JSON.stringify({ ...config, eos_token_id: stops }),
    'tokenizer.json': JSON.stringify(tokenizer()),
    'tokenizer_config.json': JSON.stringify({ eos_token: '<|return|>' }),
    'chat_template.jinja': TEMPLATE,
  })
  symlinkSync(join(GOLDEN, 'model.safetensors'), join(folder.path, 'model.safetensors'))
  engine = await Engine.load(folder.path, { expertParallel: 2, threads: 1 })
  server = createServer(engine, { logLevel: 'silent' })
  url = await server.listen(0)
})
afterAll(async () => {
  await server?.close()
  await engine?.close()
  folder?.[Symbol.dispose]()
})

async function chat(body: object) {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ max_tokens: 200, ...body }),
  })
  // biome-ignore lint/suspicious/noExplicitAny: the wire's shape is what is tested
  return { status: response.status, json: (await response.json()) as any }
}

const question = { role: 'user', content: 'Weather?' }

it('a forced call comes back as a tool call, and goes in again with its result', async () => {
  const choice = { type: 'function', function: { name: 'get_weather' } }
  let calls = 0
  for (let seed = 0; seed < 8; seed++) {
    const forced = { tools: [TOOL], tool_choice: choice, temperature: 1, seed }
    const { status, json } = await chat({ ...forced, messages: [question] })
    expect(status, JSON.stringify(json)).toBe(200)
    const [{ message, finish_reason: reason }] = json.choices
    // Reasoning before the call may have no end.
    if (reason === 'length') continue
    calls++
    expect(reason).toBe('tool_calls')
    const [call] = message.tool_calls
    expect(call.function.name).toBe('get_weather')
    const { days, now, ...rest } = JSON.parse(call.function.arguments)
    expect([typeof days, typeof now, rest]).toEqual(['number', 'boolean', {}])
    const result = { role: 'tool', tool_call_id: call.id, content: 'sunny' }
    const again = await chat({ messages: [question, message, result], max_tokens: 4 })
    expect(again.status, JSON.stringify(again.json)).toBe(200)
  }
  expect(calls).toBeGreaterThan(1)
})

it('calls without content, and reasoning, are rendered as the template wants them', async () => {
  const call = {
    ...{ id: 'a', type: 'function' },
    function: { name: 'get_weather', arguments: '{"days": 3, "now": true}' },
  }
  const message = { role: 'assistant', content: null, reasoning_content: 'Look it up.' }
  const { status, json } = await chat({
    messages: [question, { ...message, tool_calls: [call] }, { role: 'tool', content: 'sunny' }],
    max_tokens: 1,
  })
  expect(status, JSON.stringify(json)).toBe(200)
  const rendered = `<|start|>user<|message|>Weather?<|end|><|start|>assistant<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"days": 3, "now": true}<|call|><|start|>tool<|message|>sunny<|end|><|start|>assistant`
  expect(json.usage.prompt_tokens).toBe(engine.tokenizer!.encode(rendered).length)
})
