/** Messages of a body → messages for a chat template: text joined, roles that templates know. */

import type { ChatMessage } from '../../engine/types.ts'
import { badRequest } from '../api-error.ts'
import { requireFits, type ServerContext } from '../context.ts'
import type { MessageBody } from '../schema/bodies.ts'

/** Throws ApiError `unsupported_content` for parts that are not text. */
export function templateMessages(
  context: ServerContext,
  bodies: readonly MessageBody[],
): ChatMessage[] {
  const { templateMessage: adapt = (message: ChatMessage) => message } = context.toolFormat ?? {}
  const messages = bodies.map((body, index) => adapt(templateMessage(body, index)))
  const numCharacters = messages.reduce(
    (sum, { content }) => sum + (typeof content === 'string' ? content.length : 0),
    0,
  )
  requireFits(context, numCharacters, 'messages')
  return messages
}

function templateMessage(body: MessageBody, index: number): ChatMessage {
  const { role, content, tool_calls: calls, ...rest } = body
  const hasCalls = Array.isArray(calls) && calls.length > 0
  return {
    ...rest,
    role: role === 'developer' ? 'system' : role,
    // Templates tell a call from an answer by either field.
    content: hasCalls && (content ?? '') === '' ? null : textContent(content, index),
    ...(hasCalls && { tool_calls: calls }),
  }
}

function textContent(content: MessageBody['content'], index: number): string {
  if (content === undefined || content === null) return ''
  if (typeof content === 'string') return content
  return content
    .map((part, at) => {
      if (part.type === 'text' && part.text !== undefined) return part.text
      throw badRequest(
        'unsupported_content',
        `parts of type '${part.type.slice(0, 64)}' are not supported, only text`,
        `messages[${index}].content[${at}]`,
      )
    })
    .join('\n')
}
