/** POST /tokenize and /detokenize, in vLLM's shapes. */

import type { FastifyInstance } from 'fastify'
import type { GenerateRequest } from '../../engine/types.ts'
import type { Tokenizer } from '../../tokenizer/index.ts'
import { badRequest } from '../api-error.ts'
import { requireEngine, requireFits, requireModel, type ServerContext } from '../context.ts'
import { given } from '../sampling-body.ts'
import type { DetokenizeBody, TokenizeBody } from '../schema/bodies.ts'
import { detokenizeRequest, tokenizeRequest } from '../schema/requests.ts'
import { templateMessages } from './messages.ts'

export function addTokenRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post('/tokenize', { schema: { body: tokenizeRequest } }, async (request) => {
    const body = request.body as TokenizeBody
    requireModel(context, body.model)
    requireEngine(context)
    const tokens = await tokenize(context, body)
    return { count: tokens.length, max_model_len: context.engine.info.maxModelLen, tokens }
  })
  app.post('/detokenize', { schema: { body: detokenizeRequest } }, async (request) => {
    const body = request.body as DetokenizeBody
    requireModel(context, body.model)
    const prompt = requireTokenizer(context).decode(body.tokens, { skipSpecialTokens: false })
    return { prompt }
  })
}

async function tokenize(context: ServerContext, body: TokenizeBody): Promise<readonly number[]> {
  const prompt = body.prompt ?? undefined
  const messages = body.messages ?? undefined
  if ((prompt === undefined) === (messages === undefined))
    throw badRequest('invalid_value', 'give either prompt or messages')
  if (prompt !== undefined) {
    requireFits(context, prompt.length, 'prompt')
    const addBos = body.add_special_tokens !== false
    return requireTokenizer(context).encodeInBackground(prompt, { addBos })
  }
  return context.engine.tokenize(
    given<GenerateRequest>({
      messages: templateMessages(context, messages!),
      tools: body.tools,
      chatTemplateKwargs: body.chat_template_kwargs,
    }),
  )
}

function requireTokenizer({ engine }: ServerContext): Tokenizer {
  if (engine.tokenizer !== undefined) return engine.tokenizer
  throw badRequest('no_tokenizer', 'this model has no tokenizer')
}
