/** Errors as OpenAI's clients read them: a status, and `{ error: { message, type, param, code } }`. */

import { EngineError, type ErrorCode } from '../errors.ts'

export interface ErrorBody {
  readonly error: {
    readonly message: string
    readonly type: string
    readonly param: string | null
    readonly code: string
  }
}

interface ApiErrorDetails {
  readonly param?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly cause?: unknown
}

export class ApiError extends Error {
  readonly status: number
  readonly code: string
  readonly param: string | null
  readonly headers: Readonly<Record<string, string>>

  constructor(status: number, code: string, message: string, details: ApiErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.name = 'ApiError'
    this.status = status
    this.code = code
    this.param = details.param ?? null
    this.headers = details.headers ?? {}
  }

  get body(): ErrorBody {
    const { message, status, param, code } = this
    return { error: { message, type: errorType(status), param, code } }
  }
}

function errorType(status: number): string {
  if (status === 401) return 'authentication_error'
  if (status === 404) return 'not_found_error'
  if (status === 429) return 'rate_limit_error'
  return status < 500 ? 'invalid_request_error' : 'server_error'
}

export function badRequest(code: string, message: string, param?: string): ApiError {
  return new ApiError(400, code, message, param === undefined ? {} : { param })
}

/** Seconds after which a refused request may succeed. */
const RETRY_AFTER = { 'retry-after': '1' }

export function overloaded(message: string): ApiError {
  return new ApiError(429, 'overloaded', message, { headers: RETRY_AFTER })
}

export function shuttingDown(): ApiError {
  return new ApiError(503, 'shutting_down', 'the server is shutting down; ask another one', {
    headers: { ...RETRY_AFTER, connection: 'close' },
  })
}

/** Engine errors that the request itself caused, as codes of the interface. */
const REQUEST_CODES: Partial<Record<ErrorCode, string>> = {
  ERR_USAGE: 'invalid_value',
  ERR_UNSUPPORTED_OPTION: 'unsupported_parameter',
  ERR_TOKENIZER: 'no_tokenizer',
  ERR_TEMPLATE: 'template_error',
  ERR_CONTEXT_LENGTH: 'context_length_exceeded',
  ERR_KV_EXHAUSTED: 'context_length_exceeded',
}

/** The engine's options as clients, and those who run the server, know them. */
const OPTION_NAMES: Readonly<Record<string, string>> = {
  maxTokens: 'max_tokens',
  kvCacheBytes: '--kv-cache-bytes of the server',
  maxWaiting: '--max-waiting of the server',
}

function inWordsOfClients(message: string): string {
  return message.replace(/\b[a-z]+[A-Z]\w+\b/g, (name) =>
    Object.hasOwn(OPTION_NAMES, name) ? OPTION_NAMES[name] : name,
  )
}

/** What a client is told of `error`. Unknown errors say nothing of their message. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (!(error instanceof EngineError))
    return new ApiError(500, 'internal_error', 'the server failed to handle this request', {
      cause: error,
    })
  const requestCode = REQUEST_CODES[error.code]
  if (requestCode !== undefined) {
    return badRequest(requestCode, inWordsOfClients(error.message), error.param)
  }
  switch (error.code) {
    case 'ERR_QUEUE_FULL':
      return overloaded(inWordsOfClients(error.message))
    case 'ERR_DEADLINE':
      // The deadline is the client's own: its library must not try again by itself.
      return new ApiError(503, 'deadline_exceeded', error.message, {
        headers: { 'x-should-retry': 'false' },
      })
    case 'ERR_CLOSED':
      return shuttingDown()
    case 'ERR_ABORTED':
      return new ApiError(503, 'aborted', 'the request was aborted', { cause: error })
    case 'ERR_INTERNAL':
      return new ApiError(500, 'internal_error', 'the engine failed to handle this request', {
        cause: error,
      })
    default:
      return engineFailed(error.code, error)
  }
}

export function engineFailed(reason: string, cause?: unknown): ApiError {
  return new ApiError(
    503,
    'engine_failed',
    `the engine has failed (${reason}) and must be restarted`,
    { cause },
  )
}
