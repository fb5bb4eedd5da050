/** Parsers of tool calls and reasoning: what they read, and that grouping does not matter. */

import { describe, expect, it } from 'vitest'
import {
  createPlainParser,
  type OutputParser,
  type OutputPart,
  ReasoningParser,
  TOOL_FORMATS,
} from '../../lib/server/tools/index.ts'
import { createRandom } from '../support/random.ts'

const NAMES = new Set(['get_weather', 'add'])

interface Answer {
  readonly content: string
  readonly reasoning: string
  readonly calls: readonly (readonly [name: string, args: string])[]
}

function gather(parts: readonly OutputPart[]): Answer {
  let content = ''
  let reasoning = ''
  const calls: [string, string][] = []
  for (const part of parts) {
    if (part.kind === 'content') content += part.text
    else if (part.kind === 'reasoning') reasoning += part.text
    else if (part.kind === 'call') calls.push([part.name, ''])
    else calls[calls.length - 1][1] += part.text
  }
  return { content, reasoning, calls }
}

function parse(create: () => OutputParser, pieces: readonly string[]): Answer {
  const parser = create()
  return gather([...pieces.flatMap((piece) => parser.push(piece)), ...parser.finish()])
}

function format(name: string): () => OutputParser {
  const found = TOOL_FORMATS.find((candidate) => candidate.name === name)
  if (found === undefined) throw new Error(`no format ${name}`)
  return () => found.create(NAMES)
}

const thinking = (isOpen: boolean) => () => new ReasoningParser(format('hermes')(), isOpen)
const answer = (content: string, calls: Answer['calls'] = [], reasoning = ''): Answer => ({
  content,
  reasoning,
  calls,
})

type Case = readonly [name: string, create: () => OutputParser, text: string, expected: Answer]

const PARIS = '{"city": "Paris"}'
const CASES: readonly Case[] = [
  ['plain', createPlainParser, 'a <tool_call> b', answer('a <tool_call> b')],
  ['no call', format('hermes'), ' 1 < 2 <tool \n', answer(' 1 < 2 <tool \n')],
  [
    'one call',
    format('hermes'),
    `\n<tool_call>\n{"name": "get_weather", "arguments": ${PARIS}}\n</tool_call>\n`,
    answer('', [['get_weather', PARIS]]),
  ],
  [
    'text, two calls, text',
    format('hermes'),
    `Let me see.\n<tool_call>{"name":"add","arguments":{"a":1,"b":[-2.5e3,{"c":null}]}}</tool_call>\n<tool_call>{"arguments":${PARIS},"name":"get_weather"}</tool_call>\nDone. `,
    answer('Let me see.Done. ', [
      ['add', '{"a":1,"b":[-2.5e3,{"c":null}]}'],
      ['get_weather', PARIS],
    ]),
  ],
  [
    'arguments as text, with escapes',
    format('hermes'),
    '<tool_call>{"name": "add", "arguments": "{\\"a\\": \\"\\u00e9</tool_call>\\"}"}</tool_call>',
    answer('', [['add', '{"a": "é</tool_call>"}']]),
  ],
  [
    'no arguments',
    format('hermes'),
    '<tool_call>{"name": "add"}</tool_call>',
    answer('', [['add', '{}']]),
  ],
  [
    'null arguments',
    format('hermes'),
    '<tool_call>{"arguments": null, "name": "add"}</tool_call>',
    answer('', [['add', '{}']]),
  ],
  [
    'not JSON: content',
    format('hermes'),
    '<tool_call>get_weather(Paris)</tool_call> ok',
    answer('<tool_call>get_weather(Paris)</tool_call> ok'),
  ],
  [
    'no name: content',
    format('hermes'),
    '<tool_call>{"arguments": {}}</tool_call>',
    answer('<tool_call>{"arguments": {}}</tool_call>'),
  ],
  [
    'cut before arguments: content',
    format('hermes'),
    '<tool_call>{"name": "add", ',
    answer('<tool_call>{"name": "add", '),
  ],
  [
    'cut within arguments',
    format('hermes'),
    '<tool_call>{"name": "add", "arguments": {"a": 1',
    answer('', [['add', '{"a": 1']]),
  ],
  [
    'broken within arguments, then another',
    format('hermes'),
    '<tool_call>{"name": "add", "arguments": {"a": oops}} <tool_call>{"name": "add", "arguments": {}}</tool_call>',
    answer('', [
      ['add', '{"a": oops'],
      ['add', '{}'],
    ]),
  ],
  [
    'Llama 3: one call',
    format('llama3'),
    `\n{"name": "get_weather", "parameters": ${PARIS}}`,
    answer('', [['get_weather', PARIS]]),
  ],
  [
    'Llama 3: two calls',
    format('llama3'),
    `{"type": "function", "name": "get_weather", "parameters": ${PARIS}}; {"name": "add", "parameters": {}}`,
    answer('', [
      ['get_weather', PARIS],
      ['add', '{}'],
    ]),
  ],
  [
    'Llama 3: another object',
    format('llama3'),
    ' {"name": "Ada", "parameters": {}} ',
    answer(' {"name": "Ada", "parameters": {}} '),
  ],
  ['Llama 3: text', format('llama3'), '12 + 7 = 19. {', answer('12 + 7 = 19. {')],
  ['Llama 3: only space', format('llama3'), ' \n', answer(' \n')],
  [
    'Mistral: list',
    format('mistral'),
    `Well. [TOOL_CALLS] [{"name": "get_weather", "arguments": ${PARIS}}, {"name": "add", "arguments": {"a": 1}}] `,
    answer('Well.', [
      ['get_weather', PARIS],
      ['add', '{"a": 1}'],
    ]),
  ],
  [
    'Mistral: names',
    format('mistral'),
    `[TOOL_CALLS]get_weather[ARGS]${PARIS}[TOOL_CALLS]add[CALL_ID]abc123xyz[ARGS]{"a": [1]}`,
    answer('', [
      ['get_weather', PARIS],
      ['add', '{"a": [1]}'],
    ]),
  ],
  [
    'Mistral: neither',
    format('mistral'),
    'see [TOOL_CALLS] "x" {y}',
    answer('see [TOOL_CALLS] "x" {y}'),
  ],
  [
    'gpt-oss: reasoning, call',
    format('gpt-oss'),
    `<|channel|>analysis<|message|>Need weather.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>${PARIS}`,
    answer('', [['get_weather', PARIS]], 'Need weather.'),
  ],
  [
    'gpt-oss: recipient in the role',
    format('gpt-oss'),
    ' to=functions.add<|channel|>commentary<|message|>{"a": 1}<|call|>',
    answer('', [['add', '{"a": 1}']]),
  ],
  [
    'gpt-oss: final',
    format('gpt-oss'),
    '<|channel|>analysis<|message|>Hm < |<|end|><|start|>assistant<|channel|>final<|message|>Hello <| you<|return|>',
    answer('Hello <| you', [], 'Hm < |'),
  ],
  ['gpt-oss: no format', format('gpt-oss'), 'Hello', answer('Hello')],
  [
    'think',
    thinking(false),
    '<think>\n a < b\n\nc \n</think>\n\nYes.',
    answer('Yes.', [], 'a < b\n\nc'),
  ],
  ['think, open', thinking(true), '\nwell\n</think>\n Yes. ', answer('Yes. ', [], 'well')],
  ['think, unfinished', thinking(true), 'well </thi', answer('', [], 'well </thi')],
  ['think, none', thinking(false), ' a <think> b', answer(' a <think> b')],
  [
    'think, then a call',
    thinking(false),
    `<think></think><tool_call>{"name": "add", "arguments": {}}</tool_call>`,
    answer('', [['add', '{}']]),
  ],
]

describe('output parsers', () => {
  it.each(CASES)('%s', (_, create, text, expected) => {
    expect(parse(create, [text])).toEqual(expected)
    expect(parse(create, [...text])).toEqual(expected)
  })

  it('give the same for any grouping of any text', () => {
    const random = createRandom(7)
    const pieces = CASES.flatMap(([, , text]) => text.match(/<[^>]*>|\[[A-Z_]+\]|.{1,5}/gs) ?? [])
    const creators = [...new Set(TOOL_FORMATS.map(({ name }) => name))].map(format)
    creators.push(thinking(false), thinking(true))
    let numCalls = 0
    for (let round = 0; round < 4000; round++) {
      const [, ownCreate, ownText] = CASES[random.int(0, CASES.length - 1)]
      const isShuffled = round % 2 === 0
      const create = isShuffled ? creators[random.int(0, creators.length - 1)] : ownCreate
      const text = isShuffled
        ? Array.from({ length: 12 }, () => pieces[random.int(0, pieces.length - 1)]).join('')
        : ownText
      const groups: string[] = []
      for (let at = 0; at < text.length; ) {
        const length = 1 + random.int(0, 8)
        groups.push(text.slice(at, at + length))
        at += length
      }
      const whole = parse(create, [text])
      expect(parse(create, groups)).toEqual(whole)
      numCalls += whole.calls.length
    }
    expect(numCalls).toBeGreaterThan(500)
  })

  it('announce a call before its arguments end', () => {
    const parser = format('hermes')()
    const parts = parser.push('<tool_call>{"name": "add", "arguments": {"a"')
    expect(parts[0]).toEqual({ kind: 'call', name: 'add' })
    expect(gather(parts).calls).toEqual([['add', '{"a"']])
  })
})
