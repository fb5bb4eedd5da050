/**
 * Admission: what the server holds at once. Every request counts from its headers to the end of its
 * response, its body with its declared size; what exceeds the limits is refused before it is read.
 */

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { ApiError, overloaded, shuttingDown } from './api-error.ts'
import { createKeyCheck } from './api-keys.ts'
import type { Metrics } from './metrics.ts'
import type { ServerLimits } from './types.ts'

/** Routes that tell how the server is; they are open, answer while draining, and never count. */
const STATUS_ROUTES = new Set([
  '/',
  '/health',
  '/ready',
  '/metrics',
  '/version',
  '/stats',
  '/steps',
  '/openapi.json',
])

export interface AdmissionOptions {
  readonly limits: ServerLimits
  readonly apiKeys: readonly string[]
  readonly guardAll: boolean
  readonly metrics: Metrics
}

export interface Admission {
  readonly isDraining: boolean
  readonly numRequests: number
  /** Refuses work from now on; resolves when what was accepted has ended. */
  drain(): Promise<void>
}

export function addAdmission(app: FastifyInstance, options: AdmissionOptions): Admission {
  const { limits, metrics } = options
  const isKnown = createKeyCheck(options.apiKeys)
  let isDraining = false
  let numRequests = 0
  let bodyBytes = 0
  let onIdle = (): void => {}

  const admit = (request: FastifyRequest, reply: FastifyReply): void => {
    if (isDraining) throw shuttingDown()
    const size = declaredBytes(request, limits)
    if (size > limits.bodyBytes)
      throw new ApiError(413, 'body_too_large', `a body has at most ${limits.bodyBytes} bytes`)
    if (numRequests >= limits.requests)
      throw overloaded(`the server already has ${numRequests} requests`)
    if (bodyBytes + size > limits.totalBodyBytes)
      throw overloaded('the server already holds too many large requests')
    numRequests++
    bodyBytes += size
    reply.raw.once('close', () => {
      numRequests--
      bodyBytes -= size
      if (numRequests === 0) onIdle()
    })
  }

  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id)
    const route = request.routeOptions.url ?? ''
    reply.raw.once('close', () => {
      const { statusCode, writableFinished } = reply.raw
      const ms = reply.elapsedTime
      // Unknown paths share one label: a client must not be able to make up new ones.
      metrics.observeResponse(route || 'unknown', request.method, statusCode, ms / 1000)
      const level = STATUS_ROUTES.has(route) ? 'debug' : 'info'
      request.log[level](
        {
          method: request.method,
          route,
          status: statusCode,
          ms: Math.round(ms),
          complete: writableFinished,
        },
        'request',
      )
    })
    const isStatus = STATUS_ROUTES.has(route)
    if ((!isStatus || options.guardAll) && !isKnown(request.headers.authorization))
      throw new ApiError(401, 'invalid_api_key', 'give a valid key: Authorization: Bearer KEY', {
        headers: { 'www-authenticate': 'Bearer' },
      })
    if (!isStatus) admit(request, reply)
  })

  // Streams watch their clients themselves; any other response is sent as one piece.
  app.addHook('onSend', async (_, reply) => {
    const timer = setTimeout(() => reply.raw.destroy(), limits.stalledMs)
    reply.raw.once('close', () => clearTimeout(timer))
  })

  return {
    get isDraining() {
      return isDraining
    },
    get numRequests() {
      return numRequests
    },
    drain() {
      isDraining = true
      if (numRequests === 0) return Promise.resolve()
      return new Promise((resolve) => {
        onIdle = resolve
      })
    },
  }
}

/** A body in chunks declares nothing, and may become as large as is allowed. */
function declaredBytes({ headers }: FastifyRequest, limits: ServerLimits): number {
  if (headers['transfer-encoding'] !== undefined) return limits.bodyBytes
  return Number(headers['content-length'] ?? 0)
}
