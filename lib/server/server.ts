/**
 * Server: nanoweave behind HTTP. Builds the routes, listens, and ends in order: refuse, let what
 * was accepted end, close connections. The engine belongs to the caller and stays open.
 */

import { randomUUID } from 'node:crypto'
import type { Socket } from 'node:net'
import { basename } from 'node:path'
import fastify, {
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify'
import { pino } from 'pino'
import { EngineError } from '../errors.ts'
import { type Admission, addAdmission } from './admission.ts'
import { ApiError, badRequest, toApiError } from './api-error.ts'
import type { ServerContext } from './context.ts'
import { WriteBatch } from './event-stream.ts'
import { parseJsonBody } from './json-body.ts'
import { createMetrics } from './metrics.ts'
import { watchReadiness } from './readiness.ts'
import { addChatRoute } from './routes/chat.ts'
import { addCompletionsRoute } from './routes/completions.ts'
import { addModelRoutes } from './routes/models.ts'
import { addStatusRoutes } from './routes/status.ts'
import { addTokenRoutes } from './routes/tokens.ts'
import { detectToolFormat, THINK_OPEN, TOOL_FORMATS, type ToolFormat } from './tools/index.ts'
import { createTracing } from './tracing.ts'
import {
  DEFAULT_LIMITS,
  MAX_TOOL_PIN_MS,
  type ServedEngine,
  type ServerLimits,
  type ServerOptions,
} from './types.ts'
import { readVersion } from './version.ts'

export interface Server {
  readonly modelName: string
  /** Resolves to the address: `http://127.0.0.1:8000`. ERR_IO when the port is taken. */
  listen(port: number, host?: string): Promise<string>
  /** Not ready from now on, and new requests are refused; resolves when accepted ones have ended. */
  drain(): Promise<void>
  /** Ends every connection. */
  close(): Promise<void>
}

/** ERR_USAGE for an unknown tool format, or a time out of range. */
export function createServer(engine: ServedEngine, options: ServerOptions = {}): Server {
  const limits: ServerLimits = { ...DEFAULT_LIMITS, ...options.limits }
  const modelName = options.modelName ?? basename(engine.info.folder)
  const version = readVersion()
  const metrics = createMetrics(engine, modelName)
  const app = createApp(limits, options.logLevel ?? 'info')
  const admission = addAdmission(app, {
    limits,
    metrics,
    apiKeys: options.apiKeys ?? [],
    guardAll: options.guardAll ?? false,
  })
  const context: ServerContext = {
    engine,
    modelName,
    version,
    startSpan: createTracing(modelName, version),
    writes: new WriteBatch(),
    startedAt: Math.floor(Date.now() / 1000),
    limits,
    metrics,
    toolFormat: chooseToolFormat(engine, options.toolFormat ?? 'auto'),
    splitsReasoning: options.reasoning ?? hasThinkToken(engine),
    toolPinTtlMs: checkToolPin(options.toolPinTtlMs ?? 0),
    isDraining: () => admission.isDraining,
  }
  const readiness = watchReadiness(engine, limits.stepOverdueMs, context.isDraining)
  addChatRoute(app, context)
  addCompletionsRoute(app, context)
  addModelRoutes(app, context)
  addTokenRoutes(app, context)
  addStatusRoutes(app, context, readiness)
  return {
    modelName,
    listen: (port, host = '127.0.0.1') => listen(app, port, host),
    drain: () => drain(app, admission),
    async close() {
      readiness.stop()
      await app.close()
    },
  }
}

function createApp(limits: ServerLimits, logLevel: string): FastifyInstance {
  const app = fastify({
    loggerInstance: pino({ level: logLevel }, pino.destination(2)),
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: limits.bodyBytes,
    requestTimeout: limits.receiveMs,
    forceCloseConnections: true,
    http: {
      maxHeaderSize: limits.headerBytes,
      headersTimeout: limits.receiveMs,
      connectionsCheckingInterval: Math.min(30_000, Math.ceil(limits.receiveMs / 4)),
    },
    genReqId: requestId,
    ajv: {
      customOptions: {
        coerceTypes: false,
        useDefaults: false,
        removeAdditional: false,
        allowUnionTypes: true,
      },
    },
    frameworkErrors: (_, request, reply) => {
      sendError(request, reply, badRequest('invalid_url', 'the path is malformed'))
    },
    clientErrorHandler,
  }) as unknown as FastifyInstance
  app.server.maxConnections = limits.connections
  app.removeAllContentTypeParsers()
  app.addContentTypeParser(
    'application/json',
    { parseAs: 'buffer' },
    async (_: FastifyRequest, body: Buffer) => parseJsonBody(body, limits.jsonDepth),
  )
  app.setErrorHandler((error, request, reply) => sendError(request, reply, fromFastify(error)))
  app.setNotFoundHandler((request, reply) => {
    const message = `${request.method} ${request.url.slice(0, 256)} is not served here`
    sendError(request, reply, new ApiError(404, 'not_found', message))
  })
  return app
}

/** The client's own id, where it is one that may be logged. */
function requestId(request: { headers: NodeJS.Dict<string | string[]> }): string {
  const given = request.headers['x-request-id']
  return typeof given === 'string' && /^[\w.-]{1,128}$/.test(given) ? given : randomUUID()
}

function sendError(request: FastifyRequest, reply: FastifyReply, error: ApiError): void {
  // Nobody is left to be told, and nothing is wrong.
  const isGone = reply.raw.destroyed
  if (error.status >= 500 && !isGone) request.log.error({ err: error.cause ?? error }, error.code)
  // A body that was not read would be taken for the next request.
  if (!request.raw.complete) reply.header('connection', 'close')
  reply.code(error.status).headers(error.headers).send(error.body)
}

interface FastifyFailure {
  readonly code?: string
  readonly statusCode?: number
  readonly message: string
  readonly validation?: readonly { readonly instancePath: string; readonly message?: string }[]
}

function fromFastify(error: unknown): ApiError {
  if (error instanceof ApiError || error instanceof EngineError) return toApiError(error)
  const { validation, code, statusCode } = error as FastifyFailure
  if (validation !== undefined && validation.length > 0) {
    const [{ instancePath, message = 'is not valid' }] = validation
    const param = paramOf(instancePath)
    return badRequest('invalid_value', `${param ?? 'the body'} ${message}`, param)
  }
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE')
    return new ApiError(413, 'body_too_large', 'the body is too large')
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE')
    return new ApiError(415, 'unsupported_media_type', 'send application/json')
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500)
    return new ApiError(statusCode, 'invalid_request', (error as FastifyFailure).message)
  return toApiError(error)
}

/** `/messages/0/role` → `messages[0].role`. */
function paramOf(instancePath: string): string | undefined {
  if (instancePath === '') return undefined
  return instancePath
    .slice(1)
    .slice(0, 256)
    .split('/')
    .map((step, at) => (/^\d+$/.test(step) ? `[${step}]` : at === 0 ? step : `.${step}`))
    .join('')
}

/** What is not HTTP, or has too large headers, has no request to answer: the socket is told. */
function clientErrorHandler(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy()
    return
  }
  const [status, reason, code] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'Request Header Fields Too Large', 'headers_too_large']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'Request Timeout', 'request_timeout']
        : [400, 'Bad Request', 'invalid_http']
  const { body } = new ApiError(Number(status), String(code), String(reason))
  const text = JSON.stringify(body)
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${text.length}\r\n\r\n${text}`,
  )
}

function chooseToolFormat(engine: ServedEngine, name: string): ToolFormat | undefined {
  if (name === 'none' || engine.tokenizer === undefined) return undefined
  if (name === 'auto') return detectToolFormat(engine.tokenizer)
  const format = TOOL_FORMATS.find((candidate) => candidate.name === name)
  if (format !== undefined) return format
  const names = TOOL_FORMATS.map((candidate) => candidate.name).join(', ')
  throw new EngineError('ERR_USAGE', `no tool format '${name}'; there are auto, none, ${names}`)
}

function checkToolPin(ttlMs: number): number {
  if (ttlMs >= 0 && ttlMs <= MAX_TOOL_PIN_MS) return ttlMs
  throw new EngineError('ERR_USAGE', `toolPinTtlMs must be a number from 0 to ${MAX_TOOL_PIN_MS}`)
}

function hasThinkToken({ tokenizer }: ServedEngine): boolean {
  return tokenizer?.encode(THINK_OPEN).length === 1
}

async function listen(app: FastifyInstance, port: number, host: string): Promise<string> {
  try {
    return await app.listen({ port, host })
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const reason =
      code === 'EADDRINUSE' ? 'the port is in use; choose another one' : (cause as Error).message
    throw new EngineError('ERR_IO', `cannot listen on ${host}:${port}: ${reason}`, { cause })
  }
}

async function drain(app: FastifyInstance, admission: Admission): Promise<void> {
  const ended = admission.drain()
  app.server.closeIdleConnections()
  await ended
}
