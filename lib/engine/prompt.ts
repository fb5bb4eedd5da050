/** Prompts: from the `prompt`, `messages` or `tokens` of a request to token ids. */

import { EngineError } from '../errors.ts'
import type { ChatTemplate, Tokenizer } from '../tokenizer/index.ts'
import { requireToken } from './sampling.ts'
import type { ChatMessage, GenerateRequest, MessagePart } from './types.ts'

export interface PromptContext {
  readonly tokenizer: Tokenizer | undefined
  readonly chatTemplate: ChatTemplate | undefined
  readonly vocabSize: number
  readonly maxModelLen: number
}

/** No vocabulary has longer tokens; longer texts are refused before they are tokenized. */
const MAX_CHARACTERS_PER_TOKEN = 1024
const MAX_MESSAGES = 4096

/**
 * Token ids of a request, at least one. ERR_USAGE unless exactly one form is given and every id is in
 * range; ERR_TOKENIZER without a tokenizer, ERR_TEMPLATE without a chat template.
 */
export async function promptTokens(
  request: GenerateRequest,
  context: PromptContext,
): Promise<readonly number[]> {
  const forms = [request.prompt, request.messages, request.tokens]
  if (forms.filter((form) => form !== undefined).length !== 1)
    throw new EngineError('ERR_USAGE', 'give exactly one of prompt, messages and tokens')
  if (request.tokens !== undefined) return checkTokens(request.tokens, context.vocabSize)
  const { tokenizer } = context
  if (tokenizer === undefined)
    throw new EngineError(
      'ERR_TOKENIZER',
      'the model folder has no tokenizer.json; give the request as tokens',
    )
  if (request.prompt !== undefined) {
    if (typeof request.prompt !== 'string')
      throw new EngineError('ERR_USAGE', 'prompt must be a string')
    requireLength(request.prompt, context)
    const tokens = await tokenizer.encodeInBackground(request.prompt, { addBos: true })
    return checkTokens(tokens, context.vocabSize)
  }
  const rendered = await renderMessages(request, context)
  requireLength(rendered, context)
  // The template writes the beginning-of-sequence token itself.
  return checkTokens(await tokenizer.encodeInBackground(rendered), context.vocabSize)
}

async function renderMessages(request: GenerateRequest, context: PromptContext): Promise<string> {
  const { messages = [] } = request
  if (context.chatTemplate === undefined)
    throw new EngineError(
      'ERR_TEMPLATE',
      'the model folder has no chat template; give the request as prompt or tokens',
    )
  if (!Array.isArray(messages) || messages.length === 0 || messages.length > MAX_MESSAGES)
    throw new EngineError('ERR_USAGE', `messages must be a list of 1 to ${MAX_MESSAGES} messages`)
  return context.chatTemplate.render(messages.map(withTextContent), {
    ...(request.tools !== undefined && { tools: request.tools }),
    ...(request.chatTemplateKwargs !== undefined && { kwargs: request.chatTemplateKwargs }),
  })
}

/**
 * Content as one string, as every text template expects: text parts joined by line breaks. ERR_USAGE for a message
 * that is none, ERR_UNSUPPORTED_OPTION for parts that are not text.
 */
function withTextContent(message: ChatMessage): ChatMessage & { content?: string | null } {
  if (typeof message !== 'object' || message === null || typeof message.role !== 'string')
    throw new EngineError('ERR_USAGE', 'every message needs a role')
  const { content, ...rest } = message
  if (content === undefined || content === null || typeof content === 'string')
    return { ...rest, ...(content !== undefined && { content }) }
  if (!Array.isArray(content))
    throw new EngineError('ERR_USAGE', 'content must be a string, null or a list of parts')
  const texts: string[] = []
  for (const part of content as readonly MessagePart[]) {
    if (part?.type !== 'text')
      throw new EngineError(
        'ERR_UNSUPPORTED_OPTION',
        `messages may have text parts only, not ${String(part?.type)}`,
      )
    if (typeof part.text !== 'string')
      throw new EngineError('ERR_USAGE', 'a text part needs a text string')
    texts.push(part.text)
  }
  return { ...rest, content: texts.join('\n') }
}

function requireLength(text: string, context: PromptContext): void {
  if (text.length > context.maxModelLen * MAX_CHARACTERS_PER_TOKEN)
    throw new EngineError(
      'ERR_CONTEXT_LENGTH',
      `a prompt of ${text.length} characters cannot fit the context of ${context.maxModelLen} tokens`,
    )
}

/** The ids as an array; ERR_USAGE unless they are integers within the vocabulary, at least one. */
export function checkTokens(
  tokens: readonly number[] | Int32Array,
  vocabSize: number,
): readonly number[] {
  if (!Array.isArray(tokens) && !(tokens instanceof Int32Array))
    throw new EngineError('ERR_USAGE', 'tokens must be an array or Int32Array of token ids')
  if (tokens.length === 0)
    throw new EngineError('ERR_USAGE', 'the prompt must have at least one token')
  for (const id of tokens) requireToken(id, 'tokens', vocabSize)
  return Array.isArray(tokens) ? tokens : [...tokens]
}
