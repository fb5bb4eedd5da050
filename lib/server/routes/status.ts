/** Routes about the server itself: health, readiness, metrics, version, the API's description, the page. */

import type { FastifyInstance } from 'fastify'
import type { ServerContext } from '../context.ts'
import { kvUsage } from '../metrics.ts'
import { PAGE, PAGE_HEADERS } from '../page.ts'
import type { Readiness } from '../readiness.ts'
import { createOpenApi } from '../schema/openapi.ts'

export function addStatusRoutes(
  app: FastifyInstance,
  context: ServerContext,
  readiness: Readiness,
): void {
  const { engine, metrics, modelName, version } = context
  const openApi = createOpenApi(version)

  // A failed engine never recovers: whoever watches health must restart the process.
  app.get('/health', (_, reply) => {
    const { failed } = engine.stats()
    if (failed === undefined) return { status: 'ok' }
    reply.code(503)
    return { status: 'failed', reason: failed }
  })
  app.get('/ready', (_, reply) => {
    const reason = readiness.problem()
    if (reason === undefined) return { status: 'ready' }
    reply.code(503)
    return { status: 'not_ready', reason }
  })
  app.get('/metrics', async (_, reply) => {
    reply.type(metrics.contentType)
    return metrics.render()
  })
  app.get('/version', () => ({ version }))
  app.get('/', (_, reply) => reply.headers(PAGE_HEADERS).send(PAGE))
  app.get('/openapi.json', () => openApi)
  app.get('/steps', () => ({ nowMs: performance.now(), steps: engine.recentSteps() }))
  app.get('/stats', () => {
    const stats = engine.stats()
    return {
      model: modelName,
      running: stats.running,
      waiting: stats.waiting,
      kvUsage: kvUsage(stats),
      promptTokens: stats.promptTokens,
      generatedTokens: metrics.numGenerated,
      steps: stats.steps,
    }
  })
}
