/** POST /v1/chat/completions. */

import type { FastifyInstance } from 'fastify'
import type { GenerateManyRequest, GenerateRequest } from '../../engine/types.ts'
import { badRequest } from '../api-error.ts'
import { ChatAnswer } from '../chat-answer.ts'
import { requireEngine, requireModel, type ServerContext } from '../context.ts'
import { chatGrammar } from '../output-grammar.ts'
import { given, samplingOptions } from '../sampling-body.ts'
import type { ChatBody, ToolBody } from '../schema/bodies.ts'
import { chatRequest } from '../schema/requests.ts'
import {
  createPlainParser,
  type OutputParser,
  ReasoningParser,
  THINK_CLOSE,
  THINK_OPEN,
  type ToolFormat,
} from '../tools/index.ts'
import { templateMessages } from './messages.ts'
import { answerHeader, clientController, runCompletion } from './run-completion.ts'

/** Tokens at the end of a prompt in which `<think>` is looked for. */
const PROMPT_TAIL = 8

export function addChatRoute(app: FastifyInstance, context: ServerContext): void {
  app.post('/v1/chat/completions', { schema: { body: chatRequest } }, async (request, reply) => {
    const body = request.body as ChatBody
    requireModel(context, body.model)
    requireEngine(context)
    requireSupported(body)
    const { tokenizer } = context.engine
    if (tokenizer === undefined)
      throw badRequest('no_tokenizer', 'this model has no tokenizer; use /v1/completions')
    const tools = offeredTools(body)
    const format = tools.length > 0 ? requireToolFormat(context) : formatInUse(context)
    const messages = templateMessages(context, body.messages)
    const controller = clientController(reply)
    // Rendered once for all choices.
    const tokens = await context.engine.tokenize(
      given<GenerateRequest>({
        messages,
        tools: tools.length > 0 ? tools : undefined,
        chatTemplateKwargs: body.chat_template_kwargs,
      }),
    )
    const isStreamed = body.stream === true
    const includeUsage = isStreamed && body.stream_options?.include_usage === true
    const topLogprobs = body.top_logprobs ?? 0
    const numChoices = body.n ?? 1
    const markers = [
      ...(format?.markers ?? []),
      ...(context.splitsReasoning ? [THINK_OPEN, THINK_CLOSE] : []),
    ]
    const keepsSpecialTokens = markers.some((marker) => {
      const ids = tokenizer.encode(marker)
      return ids.length === 1 && tokenizer.isSpecial(ids[0])
    })
    const isThinking =
      context.splitsReasoning &&
      tokenizer
        .decode(tokens.slice(-PROMPT_TAIL), { skipSpecialTokens: false })
        .trimEnd()
        .endsWith(THINK_OPEN)
    const grammar = chatGrammar(body, {
      format,
      tools,
      reasoning: reasoningOf(context, isThinking),
    })
    const { max_completion_tokens: maxTokens } = body
    const choices: GenerateManyRequest = {
      ...samplingOptions(given({ ...body, max_tokens: maxTokens ?? body.max_tokens })),
      n: numChoices,
      tokens,
      skipSpecialTokens: !keepsSpecialTokens,
      ...(grammar !== undefined && { grammar }),
      ...(body.logprobs === true && { logprobs: true, topLogprobs }),
    }
    const names = new Set(tools.map((tool) => tool.function.name))
    const answer = new ChatAnswer({
      header: answerHeader(context, 'chatcmpl'),
      numChoices,
      isStreamed,
      includeUsage,
      tokenizer,
      createParser: () => createParser(context, format, names, isThinking),
      keepsSpecialTokens,
      parallelCalls: body.parallel_tool_calls !== false,
      wantsLogprobs: body.logprobs === true,
      topLogprobs,
    })
    await runCompletion(context, request, reply, controller, {
      answer,
      groups: [{ first: 0, request: choices }],
      isStreamed,
      includeUsage,
      mayCallTools: tools.length > 0,
    })
    return reply
  })
}

function createParser(
  context: ServerContext,
  format: ToolFormat | undefined,
  names: ReadonlySet<string>,
  isThinking: boolean,
): OutputParser {
  const parser = format?.create(names) ?? createPlainParser()
  return context.splitsReasoning ? new ReasoningParser(parser, isThinking) : parser
}

function reasoningOf(context: ServerContext, isThinking: boolean): 'none' | 'possible' | 'open' {
  if (!context.splitsReasoning) return 'none'
  return isThinking ? 'open' : 'possible'
}

function requireSupported({ logprobs, top_logprobs: top }: ChatBody): void {
  if (typeof top === 'number' && top > 0 && logprobs !== true)
    throw badRequest('invalid_value', 'top_logprobs needs logprobs: true', 'top_logprobs')
}

function offeredTools(body: ChatBody): readonly ToolBody[] {
  return body.tool_choice === 'none' ? [] : (body.tools ?? [])
}

/** Some models use their format whether tools are offered or not. */
function formatInUse({ toolFormat }: ServerContext): ToolFormat | undefined {
  return toolFormat?.isAlwaysUsed === true ? toolFormat : undefined
}

function requireToolFormat(context: ServerContext): ToolFormat {
  if (context.toolFormat !== undefined) return context.toolFormat
  throw badRequest('unsupported_tools', 'tools are switched off on this server', 'tools')
}
