/**
 * The course of a conversation: lines become messages, replies are streamed, and a message that the
 * engine refuses is dropped and the conversation goes on. Knows no terminal; chat.ts gives it one.
 */

import type { ChatMessage, EngineStats, GenerateRequest, GenerateStream } from '../engine/types.ts'
import { EngineError } from '../errors.ts'

/** The part of Engine that a conversation needs. */
export interface Talker {
  generate(request: GenerateRequest): GenerateStream
  stats(): Pick<EngineStats, 'failed'>
}

export interface Terminal {
  readonly lines: AsyncIterable<string>
  readonly prompt: () => void
  readonly write: (text: string) => Promise<void>
  readonly note: (text: string) => void
  readonly noteError: (error: EngineError) => void
  /** A signal that ends the reply that begins now; undefined afterwards. */
  readonly beginReply: () => AbortSignal
  readonly endReply: () => void
  /** Gives the terminal back, whatever happened. */
  readonly close: () => void
}

/** Every message's request, without the messages and the reply's signal. */
export interface ConversationOptions {
  readonly opening: readonly ChatMessage[]
  readonly request: Omit<GenerateRequest, 'messages' | 'signal'>
  /** Ends the conversation. */
  readonly signal: AbortSignal
}

/** Streams one reply. Aborting `signal` ends it early; what came so far is kept. */
async function reply(
  engine: Talker,
  request: GenerateRequest,
  terminal: Terminal,
): Promise<{ readonly text: string; readonly isCut: boolean }> {
  let text = ''
  let isCut = false
  try {
    for await (const chunk of engine.generate(request)) {
      text += chunk.text
      isCut = chunk.finishReason === 'length'
      await terminal.write(chunk.text)
    }
  } catch (error) {
    if (!(error instanceof EngineError && error.code === 'ERR_ABORTED')) {
      if (text !== '') await terminal.write('\n')
      throw error
    }
  }
  await terminal.write('\n')
  return { text, isCut }
}

const codesOfFullContext: ReadonlySet<string> = new Set(['ERR_CONTEXT_LENGTH', 'ERR_KV_EXHAUSTED'])

/** Says what went wrong with one message and what to do. */
function explain(error: EngineError, terminal: Terminal): void {
  terminal.noteError(error)
  terminal.note(
    codesOfFullContext.has(error.code)
      ? 'The conversation no longer fits; your last message was dropped. /reset begins anew.'
      : 'Your last message was dropped. Try again, or /reset to begin anew.',
  )
}

/** Until the lines end, /exit or `signal`. Rejects when the engine itself has failed. */
export async function converse(
  engine: Talker,
  terminal: Terminal,
  { opening, request, signal }: ConversationOptions,
): Promise<void> {
  let messages: readonly ChatMessage[] = opening
  try {
    terminal.prompt()
    for await (const line of terminal.lines) {
      const command = line.trim()
      if (command === '/exit') break
      if (command === '/reset') {
        messages = opening
      } else if (command !== '') {
        const asked: readonly ChatMessage[] = [...messages, { role: 'user', content: line }]
        try {
          const stop = AbortSignal.any([signal, terminal.beginReply()])
          const turn = await reply(engine, { ...request, messages: asked, signal: stop }, terminal)
          messages = [...asked, { role: 'assistant', content: turn.text }]
          if (turn.isCut) terminal.note('(cut: --max-tokens or the end of the context is reached)')
        } catch (error) {
          const isFatal = !(error instanceof EngineError) || error.code === 'ERR_CLOSED'
          if (isFatal || engine.stats().failed !== undefined) throw error
          explain(error, terminal)
        } finally {
          terminal.endReply()
        }
      }
      if (signal.aborted) break
      terminal.prompt()
    }
  } finally {
    terminal.close()
  }
}
