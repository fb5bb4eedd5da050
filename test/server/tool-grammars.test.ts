/** The grammar of every format's calls, sampled at random and read back by that format's parser. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { Engine } from '../../lib/index.ts'
import { chatGrammar } from '../../lib/server/output-grammar.ts'
import type { ChatBody } from '../../lib/server/schema/bodies.ts'
import { type OutputPart, TOOL_FORMATS, type ToolFormat } from '../../lib/server/tools/index.ts'
import { FOLDER } from './support.ts'

const tool = (name: string) => ({
  type: 'function' as const,
  function: {
    name,
    strict: true,
    parameters: {
      type: 'object',
      properties: {
        count: { type: 'integer', minimum: -9, maximum: 99 },
        unit: { enum: ['celsius', 'kelvin'] },
        note: { type: 'string', maxLength: 6 },
      },
      required: ['count', 'unit'],
      additionalProperties: false,
    },
  },
})
const Arguments = z.strictObject({
  count: z.int().min(-9).max(99),
  unit: z.enum(['celsius', 'kelvin']),
  note: z.string().max(6).optional(),
})
const TOOLS = [tool('get_weather'), tool('add')]
const NAMES = new Set(['get_weather', 'add'])
const NUM_SAMPLES = 16

let engine: Engine
beforeAll(async () => {
  engine = await Engine.load(FOLDER, { precision: 'f32', threads: 2 })
})
afterAll(() => engine?.close())

async function sample(format: ToolFormat, choice: object) {
  const body = { tools: TOOLS, messages: [], ...choice } as unknown as ChatBody
  const grammar = chatGrammar(body, { format, tools: TOOLS, reasoning: 'none' })!
  const { choices } = await engine.completeMany({
    prompt: 'What is the weather in Paris?',
    n: NUM_SAMPLES,
    temperature: 1.2,
    seed: 1,
    maxTokens: 900,
    skipSpecialTokens: false,
    grammar,
  })
  const whole = choices.filter(({ finishReason }) => finishReason === 'stop')
  // Free text around the calls may go on to the limit; most samples must not.
  expect(whole.length).toBeGreaterThan(NUM_SAMPLES / 4)
  return whole.map(({ tokens }) => {
    const ended = tokens.slice(0, -1)
    return engine.tokenizer!.decode(ended, { skipSpecialTokens: false })
  })
}

function parse(format: ToolFormat, text: string, step: number) {
  const parser = format.create(NAMES)
  const parts: OutputPart[] = []
  for (let at = 0; at < text.length; at += step)
    parts.push(...parser.push(text.slice(at, at + step)))
  parts.push(...parser.finish())
  const calls: { name: string; arguments: string }[] = []
  let content = ''
  for (const part of parts) {
    if (part.kind === 'call') calls.push({ name: part.name, arguments: '' })
    else if (part.kind === 'arguments') calls.at(-1)!.arguments += part.text
    else if (part.kind === 'content') content += part.text
  }
  return { calls, content }
}

describe.each(TOOL_FORMATS.map((format) => [format.name, format] as const))(
  'calls of the format %s',
  (_, format) => {
    it('that are required are read back', { timeout: 120_000 }, async () => {
      for (const text of await sample(format, { tool_choice: 'required' })) {
        const { calls, content } = parse(format, text, 3)
        expect(calls.length, text).toBeGreaterThan(0)
        expect(content.trim(), text).toBe('')
        for (const call of calls) {
          expect(NAMES).toContain(call.name)
          Arguments.parse(JSON.parse(call.arguments))
        }
        expect(parse(format, text, text.length)).toEqual({ calls, content })
      }
    })

    it('by name: one call of that tool', { timeout: 120_000 }, async () => {
      const choice = { type: 'function', function: { name: 'add' } }
      for (const text of await sample(format, { tool_choice: choice })) {
        const { calls } = parse(format, text, 1)
        expect(
          calls.map(({ name }) => name),
          text,
        ).toEqual(['add'])
        Arguments.parse(JSON.parse(calls[0].arguments))
      }
    })
  },
)
