/** /v1/models, and /v1/embeddings, which every model served here refuses. */

import type { FastifyInstance } from 'fastify'
import { ApiError } from '../api-error.ts'
import { requireModel, type ServerContext } from '../context.ts'

export function addModelRoutes(app: FastifyInstance, context: ServerContext): void {
  const model = {
    id: context.modelName,
    object: 'model',
    created: context.startedAt,
    owned_by: 'nanoweave',
    max_model_len: context.engine.info.maxModelLen,
  }
  app.get('/v1/models', () => ({ object: 'list', data: [model] }))
  // A wildcard: names may hold slashes.
  app.get('/v1/models/*', (request) => {
    requireModel(context, (request.params as { readonly '*': string })['*'])
    return model
  })
  app.post('/v1/embeddings', () => {
    throw new ApiError(
      400,
      'embeddings_not_supported',
      `'${context.modelName}' generates text; it has no embeddings`,
      { param: 'model' },
    )
  })
}
