/** /openapi.json: the routes, with the schemas that requests are checked and responses tested by. */

import * as requests from './requests.ts'
import * as responses from './responses.ts'

type Schema = requests.Schema

const json = (schema: Schema): Schema => ({ content: { 'application/json': { schema } } })
const ref = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` })

interface Operation {
  readonly summary: string
  readonly request?: string
  readonly response: Schema
  readonly isOpen?: boolean
}

function operation({ summary, request, response, isOpen = false }: Operation): Schema {
  return {
    summary,
    security: isOpen ? [] : [{ key: [] }],
    ...(request !== undefined && { requestBody: { required: true, ...json(ref(request)) } }),
    responses: {
      200: { description: 'OK', ...response },
      default: { description: 'Error', ...json(ref('Error')) },
    },
  }
}

/** A completion, or its chunks as server-sent events. */
function streamable(whole: string, chunk: string): Schema {
  return {
    content: {
      'application/json': { schema: ref(whole) },
      'text/event-stream': { schema: ref(chunk) },
    },
  }
}

const text = { content: { 'text/plain': { schema: { type: 'string' } } } }
const page = { content: { 'text/html': { schema: { type: 'string' } } } }

export function createOpenApi(version: string): Schema {
  return {
    openapi: '3.1.0',
    info: { title: 'nanoweave', version, license: { name: 'Apache-2.0' } },
    paths: {
      '/v1/chat/completions': {
        post: operation({
          summary: 'Answer a conversation',
          request: 'ChatRequest',
          response: streamable('ChatCompletion', 'ChatChunk'),
        }),
      },
      '/v1/completions': {
        post: operation({
          summary: 'Continue a prompt',
          request: 'CompletionRequest',
          response: streamable('Completion', 'CompletionChunk'),
        }),
      },
      '/v1/embeddings': {
        post: operation({
          summary: 'Always refused: the models served generate text',
          response: json(ref('Error')),
        }),
      },
      '/v1/models': {
        get: operation({ summary: 'The model served', response: json(ref('ModelList')) }),
      },
      '/v1/models/{model}': {
        parameters: [{ name: 'model', in: 'path', required: true, schema: { type: 'string' } }],
        get: operation({ summary: 'One model', response: json(ref('Model')) }),
      },
      '/tokenize': {
        post: operation({
          summary: 'Token ids of a prompt or of messages',
          request: 'TokenizeRequest',
          response: json(ref('Tokenized')),
        }),
      },
      '/detokenize': {
        post: operation({
          summary: 'Text of token ids',
          request: 'DetokenizeRequest',
          response: json(ref('Detokenized')),
        }),
      },
      ...open('/health', 'Alive: 503 when the engine has failed', json(ref('Health'))),
      ...open('/ready', 'Takes requests: 503 when not', json(ref('Health'))),
      ...open('/metrics', 'Prometheus metrics', text),
      ...open('/version', 'Version of the server', json(ref('Version'))),
      ...open('/stats', 'What the page at / shows', json(ref('Stats'))),
      ...open('/steps', 'The last steps of the engine', json(ref('RecentSteps'))),
      ...open('/openapi.json', 'This document', { content: { 'application/json': {} } }),
      ...open('/', 'A page to chat with the model', page),
    },
    components: {
      securitySchemes: { key: { type: 'http', scheme: 'bearer' } },
      schemas: {
        ChatRequest: requests.chatRequest,
        CompletionRequest: requests.completionRequest,
        TokenizeRequest: requests.tokenizeRequest,
        DetokenizeRequest: requests.detokenizeRequest,
        ChatCompletion: responses.chatCompletion,
        ChatChunk: responses.chatChunk,
        Completion: responses.completion,
        CompletionChunk: responses.completionChunk,
        Model: responses.model,
        ModelList: responses.modelList,
        Tokenized: responses.tokenized,
        Detokenized: responses.detokenized,
        Health: responses.health,
        Version: responses.version,
        Stats: responses.serverStats,
        RecentSteps: responses.recentSteps,
        Error: responses.error,
      },
    },
  }
}

function open(path: string, summary: string, response: Schema): Record<string, Schema> {
  return { [path]: { get: operation({ summary, response, isOpen: true }) } }
}
