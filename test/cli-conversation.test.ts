/** The course of a conversation, with scripted lines and engine in place of a terminal. */

import { describe, expect, it } from 'vitest'
import { converse, type Talker, type Terminal } from '../lib/cli/conversation.ts'
import { ChunkStream } from '../lib/engine/stream.ts'
import type { GenerateRequest } from '../lib/engine/types.ts'
import { EngineError, type ErrorCode } from '../lib/errors.ts'

/** Answers with the user's last message in capitals; `failures` maps a message to its error. */
class ScriptedEngine implements Talker {
  readonly asked: (readonly unknown[])[] = []
  readonly #failures: ReadonlyMap<string, ErrorCode>
  readonly #failed: ErrorCode | undefined

  constructor(failures: Record<string, ErrorCode> = {}, failed?: ErrorCode) {
    this.#failures = new Map(Object.entries(failures))
    this.#failed = failed
  }

  generate({ messages = [] }: GenerateRequest): ChunkStream {
    const contents = messages.map(({ content }) => content)
    this.asked.push(contents)
    const last = String(contents.at(-1))
    const failure = this.#failures.get(last)
    const stream = new ChunkStream(
      () => {
        if (failure !== undefined) {
          stream.fail(new EngineError(failure, 'as scripted'))
          return
        }
        stream.push({ text: last.toUpperCase(), tokens: [1], finishReason: 'stop' })
        stream.end()
      },
      () => undefined,
    )
    return stream
  }

  stats() {
    return this.#failed === undefined ? {} : { failed: this.#failed }
  }
}

function scriptedTerminal(script: readonly string[]) {
  const seen = {
    written: '',
    notes: [] as string[],
    errors: [] as ErrorCode[],
    isReplying: false,
    closed: 0,
  }
  async function* lines() {
    yield* script
  }
  const terminal: Terminal = {
    lines: lines(),
    prompt: () => undefined,
    async write(text) {
      seen.written += text
    },
    note: (text) => seen.notes.push(text),
    noteError: (error) => seen.errors.push(error.code),
    beginReply() {
      seen.isReplying = true
      return new AbortController().signal
    },
    endReply() {
      seen.isReplying = false
    },
    close: () => seen.closed++,
  }
  return { terminal, seen }
}

const options = { opening: [], request: {}, signal: new AbortController().signal }

describe('a conversation', () => {
  it.each(['ERR_CONTEXT_LENGTH', 'ERR_KV_EXHAUSTED', 'ERR_TEMPLATE', 'ERR_DEADLINE'] as const)(
    'survives %s: drops the message, keeps the turns before it, offers /reset',
    async (code) => {
      const engine = new ScriptedEngine({ bad: code })
      const { terminal, seen } = scriptedTerminal(['one', 'bad', 'two', '/reset', 'three'])
      await converse(engine, terminal, options)
      expect(engine.asked).toEqual([
        ['one'],
        ['one', 'ONE', 'bad'],
        ['one', 'ONE', 'two'],
        ['three'],
      ])
      expect(seen.written).toBe('ONE\nTWO\nTHREE\n')
      expect(seen.errors).toEqual([code])
      expect(seen.notes.join()).toContain('/reset')
      expect(seen).toMatchObject({ isReplying: false, closed: 1 })
    },
  )

  it('ends with the engine, giving the terminal back', async () => {
    const engine = new ScriptedEngine({ bad: 'ERR_RANK_FAULT' }, 'ERR_RANK_FAULT')
    const { terminal, seen } = scriptedTerminal(['bad', 'two'])
    await expect(converse(engine, terminal, options)).rejects.toMatchObject({
      code: 'ERR_RANK_FAULT',
    })
    expect(engine.asked).toEqual([['bad']])
    expect(seen).toMatchObject({ isReplying: false, closed: 1 })
  })

  it('a stopped reply leaves the conversation', async () => {
    const engine = new ScriptedEngine({ stopped: 'ERR_ABORTED' })
    const { terminal, seen } = scriptedTerminal(['stopped', 'two', '/exit', 'never'])
    await converse(engine, terminal, options)
    expect(engine.asked).toEqual([['stopped'], ['stopped', '', 'two']])
    expect(seen).toMatchObject({ errors: [], isReplying: false, closed: 1 })
  })
})
