/**
 * Request bodies as JSON schemas: what the server checks before it does anything, and what
 * /openapi.json shows. Fields that are not named are ignored; null means "not given".
 */

import {
  MAX_CHOICES,
  MAX_MESSAGES,
  MAX_PROMPTS,
  MAX_STOPS,
  MAX_TOKEN_IDS,
  MAX_TOOLS,
  MAX_TOP_LOGPROBS,
} from '../types.ts'

export type Schema = { readonly [keyword: string]: unknown }

type Nullable = (type: string, keywords?: Schema) => Schema
const optional: Nullable = (type, keywords = {}) => ({ ...keywords, type: [type, 'null'] })
const integer = (minimum: number, maximum: number) => optional('integer', { minimum, maximum })
const number = (minimum: number, maximum: number) => optional('number', { minimum, maximum })
const tokenIds = (minItems: number): Schema => ({
  type: 'array',
  items: { type: 'integer', minimum: 0, maximum: 2 ** 31 - 1 },
  minItems,
  maxItems: MAX_TOKEN_IDS,
})

const MAX_INT = 2 ** 31 - 1
const named = (name: Schema): Schema => ({
  type: 'object',
  required: ['name'],
  properties: { name },
})
const toolName: Schema = { type: 'string', minLength: 1, maxLength: 256 }

/** Fields of both kinds of completion. */
const sampling: Readonly<Record<string, Schema>> = {
  model: optional('string'),
  max_tokens: integer(1, MAX_INT),
  temperature: number(0, 2),
  top_p: number(0, 1),
  n: integer(1, MAX_CHOICES),
  stop: {
    type: ['string', 'array', 'null'],
    items: { type: 'string', minLength: 1, maxLength: 1024 },
    minLength: 1,
    maxLength: 1024,
    maxItems: MAX_STOPS,
  },
  seed: integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
  presence_penalty: number(-2, 2),
  frequency_penalty: number(-2, 2),
  logit_bias: optional('object', {
    maxProperties: 1024,
    propertyNames: { pattern: '^[0-9]{1,10}$' },
    additionalProperties: { type: 'number', minimum: -100, maximum: 100 },
  }),
  stream: optional('boolean'),
  stream_options: optional('object', { properties: { include_usage: optional('boolean') } }),
  top_k: integer(-1, MAX_INT),
  min_p: number(0, 1),
  repetition_penalty: number(1e-3, 1e3),
  min_tokens: integer(0, MAX_INT),
  ignore_eos: optional('boolean'),
  stop_token_ids: optional('array', {
    items: { type: 'integer', minimum: 0, maximum: MAX_INT },
    maxItems: 128,
  }),
  priority: number(-1e9, 1e9),
  deadline_ms: optional('number', { exclusiveMinimum: 0, maximum: MAX_INT }),
  guided_json: { type: ['object', 'string', 'null'] },
  guided_regex: optional('string', { maxLength: 16384 }),
  guided_grammar: optional('string', { maxLength: 262144 }),
  guided_choice: optional('array', {
    items: { type: 'string', maxLength: 1024 },
    minItems: 1,
    maxItems: 1024,
  }),
  cache_salt: optional('string', { maxLength: 1024 }),
  program: optional('string', { maxLength: 1024 }),
  tpot_target_ms: optional('number', { exclusiveMinimum: 0, maximum: MAX_INT }),
  pin_ttl_ms: number(0, 3_600_000),
}

const message: Schema = {
  type: 'object',
  required: ['role'],
  properties: {
    role: { enum: ['system', 'developer', 'user', 'assistant', 'tool'] },
    content: {
      type: ['string', 'array', 'null'],
      maxItems: 1024,
      items: {
        type: 'object',
        required: ['type'],
        properties: { type: { type: 'string' }, text: { type: 'string' } },
      },
    },
    name: optional('string'),
    tool_call_id: optional('string'),
    tool_calls: optional('array', {
      maxItems: MAX_TOOLS,
      items: {
        type: 'object',
        required: ['function'],
        properties: {
          id: { type: 'string' },
          type: { enum: ['function'] },
          function: {
            type: 'object',
            required: ['name', 'arguments'],
            properties: { name: toolName, arguments: { type: 'string' } },
          },
        },
      },
    }),
  },
}

const tools = optional('array', {
  maxItems: MAX_TOOLS,
  items: {
    type: 'object',
    required: ['type', 'function'],
    properties: {
      type: { enum: ['function'] },
      function: {
        ...named(toolName),
        properties: {
          name: toolName,
          description: optional('string'),
          parameters: optional('object'),
          strict: optional('boolean'),
        },
      },
    },
  },
})

const messages: Schema = { type: 'array', minItems: 1, maxItems: MAX_MESSAGES, items: message }
const templateArguments = optional('object', { maxProperties: 64 })

export const chatRequest: Schema = {
  type: 'object',
  required: ['messages'],
  properties: {
    ...sampling,
    messages,
    max_completion_tokens: integer(1, MAX_INT),
    logprobs: optional('boolean'),
    top_logprobs: integer(0, MAX_TOP_LOGPROBS),
    response_format: optional('object', {
      required: ['type'],
      properties: {
        type: { type: 'string' },
        json_schema: {
          type: 'object',
          required: ['schema'],
          properties: {
            name: optional('string'),
            description: optional('string'),
            schema: { type: ['object', 'boolean'] },
            strict: optional('boolean'),
          },
        },
      },
    }),
    tools,
    tool_choice: {
      type: ['string', 'object', 'null'],
      required: ['type'],
      properties: { type: { type: 'string' }, function: named(toolName) },
    },
    parallel_tool_calls: optional('boolean'),
    chat_template_kwargs: templateArguments,
  },
}

export const completionRequest: Schema = {
  type: 'object',
  required: ['prompt'],
  properties: {
    ...sampling,
    prompt: {
      anyOf: [
        { type: 'string' },
        { type: 'array', minItems: 1, maxItems: MAX_PROMPTS, items: { type: 'string' } },
        tokenIds(1),
        { type: 'array', minItems: 1, maxItems: MAX_PROMPTS, items: tokenIds(1) },
      ],
    },
    logprobs: integer(0, MAX_TOP_LOGPROBS),
    echo: optional('boolean'),
    suffix: optional('string'),
    best_of: integer(1, MAX_CHOICES),
  },
}

export const tokenizeRequest: Schema = {
  type: 'object',
  properties: {
    model: optional('string'),
    prompt: optional('string'),
    add_special_tokens: optional('boolean'),
    messages: { ...messages, type: ['array', 'null'] },
    tools,
    chat_template_kwargs: templateArguments,
  },
}

export const detokenizeRequest: Schema = {
  type: 'object',
  required: ['tokens'],
  properties: { model: optional('string'), tokens: tokenIds(0) },
}
