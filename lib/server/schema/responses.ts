/**
 * Responses as JSON schemas, after OpenAI's API reference: what /openapi.json promises, and what the
 * tests hold every response and chunk against. Closed: a field that is not named is a mistake.
 */

import type { Schema } from './requests.ts'

const string: Schema = { type: 'string' }
const integer: Schema = { type: 'integer', minimum: 0 }
const number: Schema = { type: 'number' }

function object(properties: Readonly<Record<string, Schema>>, optional: readonly string[] = []) {
  const required = Object.keys(properties).filter((name) => !optional.includes(name))
  return { type: 'object', properties, required, additionalProperties: false } satisfies Schema
}
const array = (items: Schema, keywords: Schema = {}): Schema => ({
  type: 'array',
  items,
  ...keywords,
})
const orNull = (schema: Schema): Schema => ({ anyOf: [schema, { type: 'null' }] })

const usage = object({
  prompt_tokens: integer,
  completion_tokens: integer,
  total_tokens: integer,
  prompt_tokens_details: object({ cached_tokens: integer }),
})

const logprobFields = {
  token: string,
  logprob: { type: 'number', maximum: 0 },
  bytes: orNull(array({ type: 'integer', minimum: 0, maximum: 255 })),
}
const chatLogprobs = orNull(
  object({
    content: array(object({ ...logprobFields, top_logprobs: array(object(logprobFields)) })),
    refusal: { type: 'null' },
  }),
)
const textLogprobs = orNull(
  object({
    tokens: array(string),
    token_logprobs: array(number),
    top_logprobs: array({ type: 'object', additionalProperties: number }),
    text_offset: array(integer),
  }),
)

const finishReason: Schema = { enum: ['stop', 'length', 'tool_calls'] }
const textFinishReason: Schema = { enum: ['stop', 'length'] }
const toolCall = object({
  id: string,
  type: { const: 'function' },
  function: object({ name: string, arguments: string }),
})
const toolCallDelta = object(
  {
    index: integer,
    id: string,
    type: { const: 'function' },
    function: object({ name: string, arguments: string }, ['name']),
  },
  ['id', 'type'],
)

const header = (id: string, kind: string) => ({
  id: { type: 'string', pattern: `^${id}-` },
  object: { const: kind },
  created: integer,
  model: string,
  system_fingerprint: string,
})

export const chatCompletion = object({
  ...header('chatcmpl', 'chat.completion'),
  choices: array(
    object({
      index: integer,
      message: object(
        {
          role: { const: 'assistant' },
          content: orNull(string),
          refusal: { type: 'null' },
          reasoning_content: string,
          tool_calls: array(toolCall, { minItems: 1 }),
        },
        ['reasoning_content', 'tool_calls'],
      ),
      logprobs: chatLogprobs,
      finish_reason: finishReason,
    }),
    { minItems: 1 },
  ),
  usage,
})

export const chatChunk = object(
  {
    ...header('chatcmpl', 'chat.completion.chunk'),
    choices: array(
      object({
        index: integer,
        delta: object(
          {
            role: { const: 'assistant' },
            content: string,
            reasoning_content: string,
            tool_calls: array(toolCallDelta, { minItems: 1 }),
          },
          ['role', 'content', 'reasoning_content', 'tool_calls'],
        ),
        logprobs: chatLogprobs,
        finish_reason: orNull(finishReason),
      }),
    ),
    usage: orNull(usage),
  },
  ['usage'],
)

const textChoice = (reason: Schema) =>
  object({ index: integer, text: string, logprobs: textLogprobs, finish_reason: reason })

export const completion = object({
  ...header('cmpl', 'text_completion'),
  choices: array(textChoice(textFinishReason), { minItems: 1 }),
  usage,
})

export const completionChunk = object(
  {
    ...header('cmpl', 'text_completion'),
    choices: array(textChoice(orNull(textFinishReason))),
    usage: orNull(usage),
  },
  ['usage'],
)

export const model = object({
  id: string,
  object: { const: 'model' },
  created: integer,
  owned_by: string,
  max_model_len: integer,
})

export const modelList = object({ object: { const: 'list' }, data: array(model) })

export const error = object({
  error: object({ message: string, type: string, param: orNull(string), code: string }),
})

export const tokenized = object({ count: integer, max_model_len: integer, tokens: array(integer) })
export const detokenized = object({ prompt: string })
export const health = object({ status: string, reason: string }, ['reason'])
export const version = object({ version: string })
const milliseconds = { type: 'number', minimum: 0 }

export const recentSteps = object({
  /** On the clock of the steps' moments. */
  nowMs: milliseconds,
  steps: {
    type: 'array',
    items: object({
      id: integer,
      planMs: milliseconds,
      submittedMs: milliseconds,
      queueMs: milliseconds,
      runMs: milliseconds,
      endedMs: milliseconds,
      sequences: integer,
      decodeTokens: integer,
      prefillTokens: integer,
      nanoBatches: { type: 'array', items: integer },
    }),
  },
})

export const serverStats = object({
  model: string,
  running: integer,
  waiting: integer,
  kvUsage: { type: 'number', minimum: 0, maximum: 1 },
  promptTokens: integer,
  generatedTokens: integer,
  steps: integer,
})
