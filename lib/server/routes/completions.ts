/** POST /v1/completions: raw prompts, as text or token ids, one or several. */

import type { FastifyInstance } from 'fastify'
import type { GenerateManyRequest } from '../../engine/types.ts'
import { badRequest } from '../api-error.ts'
import { requireEngine, requireFits, requireModel, type ServerContext } from '../context.ts'
import { textGrammar } from '../output-grammar.ts'
import type { ChoiceGroup } from '../run-choices.ts'
import { samplingOptions } from '../sampling-body.ts'
import type { CompletionBody } from '../schema/bodies.ts'
import { completionRequest } from '../schema/requests.ts'
import { TextAnswer } from '../text-answer.ts'
import { answerHeader, clientController, runCompletion } from './run-completion.ts'

/** As OpenAI's API has it. */
const DEFAULT_MAX_TOKENS = 16
const MAX_TOTAL_CHOICES = 128

type Prompt = string | readonly number[]

export function addCompletionsRoute(app: FastifyInstance, context: ServerContext): void {
  const schema = { body: completionRequest }
  app.post('/v1/completions', { schema }, async (request, reply) => {
    const body = request.body as CompletionBody
    requireModel(context, body.model)
    requireEngine(context)
    requireSupported(body)
    const prompts = readPrompts(body.prompt)
    const numPerPrompt = body.n ?? 1
    const numChoices = prompts.length * numPerPrompt
    if (numChoices > MAX_TOTAL_CHOICES)
      throw badRequest('invalid_value', `at most ${MAX_TOTAL_CHOICES} choices at once`, 'prompt')
    const grammar = textGrammar(body)
    const controller = clientController(reply)
    const groups: ChoiceGroup[] = []
    for (const prompt of prompts) {
      const request: GenerateManyRequest = {
        ...samplingOptions({ max_tokens: DEFAULT_MAX_TOKENS, ...body }),
        n: numPerPrompt,
        tokens: await promptTokens(context, prompt),
        ...(grammar !== undefined && { grammar }),
        ...(typeof body.logprobs === 'number' && { logprobs: true, topLogprobs: body.logprobs }),
      }
      groups.push({ first: groups.length * numPerPrompt, request })
    }
    const isStreamed = body.stream === true
    const includeUsage = isStreamed && body.stream_options?.include_usage === true
    const answer = new TextAnswer({
      header: answerHeader(context, 'cmpl'),
      numChoices,
      isStreamed,
      includeUsage,
      tokenizer: context.engine.tokenizer,
      wantsLogprobs: typeof body.logprobs === 'number',
    })
    await runCompletion(context, request, reply, controller, {
      answer,
      groups,
      isStreamed,
      includeUsage,
      mayCallTools: false,
    })
    return reply
  })
}

function readPrompts(prompt: CompletionBody['prompt']): readonly Prompt[] {
  if (typeof prompt === 'string') return [prompt]
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as Prompt[])
}

async function promptTokens(context: ServerContext, prompt: Prompt): Promise<readonly number[]> {
  if (typeof prompt !== 'string') return prompt
  requireFits(context, prompt.length, 'prompt')
  return context.engine.tokenize({ prompt })
}

function requireSupported({ echo, suffix, best_of: bestOf, n }: CompletionBody): void {
  const refuse = (param: string): never => {
    throw badRequest('unsupported_parameter', `${param} is not supported`, param)
  }
  if (echo === true) refuse('echo')
  if ((suffix ?? '') !== '') refuse('suffix')
  if ((bestOf ?? n ?? 1) !== (n ?? 1)) refuse('best_of')
}
