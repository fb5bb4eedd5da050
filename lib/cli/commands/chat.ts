/**
 * `nanoweave chat`: a conversation on the terminal. Replies go to stdout, the prompt to stderr.
 * Messages come from stdin, one a line; piped input works as well and ends the conversation.
 */

import { createInterface, type Interface } from 'node:readline'
import type { Command } from 'commander'
import type { Engine } from '../../engine/engine.ts'
import type { ChatMessage, SamplingOptions } from '../../engine/types.ts'
import { EngineError } from '../../errors.ts'
import type { Interrupt } from '../interrupt.ts'
import {
  addEngineOptions,
  addSamplingOptions,
  type EngineFlags,
  readEngineOptions,
  readSamplingOptions,
  type SamplingFlags,
} from '../options.ts'
import { note, writeOut } from '../output.ts'
import { withEngine } from '../with-engine.ts'

interface ChatFlags extends EngineFlags, SamplingFlags {
  readonly system?: string
}

const help = `
While it runs: /reset forgets the conversation, /exit (or Ctrl-D) ends it. Ctrl-C stops a reply;
without a reply it ends the conversation.`

/** Streams one reply to stdout. Aborting `signal` ends it early; what came so far is kept. */
async function reply(
  engine: Engine,
  messages: readonly ChatMessage[],
  sampling: SamplingOptions,
  signal: AbortSignal,
): Promise<string> {
  let text = ''
  try {
    for await (const chunk of engine.generate({ ...sampling, messages, signal })) {
      text += chunk.text
      await writeOut(chunk.text)
    }
  } catch (error) {
    if (!(error instanceof EngineError && error.code === 'ERR_ABORTED')) throw error
  }
  await writeOut('\n')
  return text
}

/** Ctrl-C in a terminal that readline holds: the reply, if there is one, else everything. */
function listenOnTerminal(lines: Interface, interrupt: Interrupt): { replying?: AbortController } {
  const state: { replying?: AbortController } = {}
  lines.on('SIGINT', () => {
    const { replying } = state
    if (replying === undefined || replying.signal.aborted) interrupt.trigger()
    else replying.abort()
  })
  interrupt.signal.addEventListener('abort', () => lines.close(), { once: true })
  return state
}

async function converse(engine: Engine, flags: ChatFlags, interrupt: Interrupt): Promise<void> {
  const sampling = readSamplingOptions(flags)
  const opening: readonly ChatMessage[] =
    flags.system === undefined ? [] : [{ role: 'system', content: flags.system }]
  let messages = [...opening]
  const lines = createInterface({
    input: process.stdin,
    output: process.stderr,
    terminal: process.stdin.isTTY === true && process.stderr.isTTY === true,
    prompt: process.stdin.isTTY === true ? '> ' : '',
  })
  const state = listenOnTerminal(lines, interrupt)
  if (process.stdin.isTTY) note(`${engine.info.architecture}: /reset, /exit; Ctrl-C stops a reply`)
  lines.prompt()
  for await (const line of lines) {
    const text = line.trim()
    if (text === '/exit') break
    if (text === '/reset') {
      messages = [...opening]
    } else if (text !== '') {
      messages.push({ role: 'user', content: line })
      state.replying = new AbortController()
      const signal = AbortSignal.any([interrupt.signal, state.replying.signal])
      messages.push({ role: 'assistant', content: await reply(engine, messages, sampling, signal) })
      delete state.replying
    }
    if (interrupt.signal.aborted) break
    lines.prompt()
  }
  lines.close()
}

export function registerChat(program: Command, interrupt: Interrupt): void {
  const command = program
    .command('chat')
    .argument('<MODEL>', 'model folder')
    .summary('talk to a model')
    .description('A conversation with a model that has a chat template.')
    .option('--system <TEXT>', 'system message to begin with')
  addSamplingOptions(addEngineOptions(command))
    .addHelpText('after', help)
    .action((model: string, flags: ChatFlags) =>
      withEngine(model, readEngineOptions(flags), interrupt.signal, (engine) =>
        converse(engine, flags, interrupt),
      ),
    )
}
