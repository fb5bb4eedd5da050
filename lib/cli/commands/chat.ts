/**
 * `nanoweave chat`: a conversation on the terminal. Replies go to stdout, the prompt to stderr.
 * Messages come from stdin, one a line; piped input works as well and ends the conversation.
 */

import { createInterface } from 'node:readline'
import type { Command } from 'commander'
import type { Engine } from '../../engine/engine.ts'
import { EngineError } from '../../errors.ts'
import { loadChatTemplate } from '../../tokenizer/index.ts'
import { converse, type Terminal } from '../conversation.ts'
import { describeError } from '../describe-error.ts'
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

/** Refuses, before anything is asked, a model that cannot chat. */
async function requireChat({ info, tokenizer }: Engine): Promise<void> {
  if (tokenizer === undefined) {
    throw new EngineError(
      'ERR_TOKENIZER',
      `chat needs a tokenizer and ${info.folder} has no tokenizer.json; add it, or use nanoweave generate --tokens`,
    )
  }
  const template = await loadChatTemplate(info.folder)
  await template?.close()
  if (template === undefined) {
    throw new EngineError(
      'ERR_TEMPLATE',
      `chat needs a chat template and ${info.folder} has none; add chat_template.jinja, or use nanoweave generate --prompt`,
    )
  }
}

/** stdin, stdout and stderr. Ctrl-C that readline holds ends the reply, if there is one, else all. */
function openTerminal(command: Command, interrupt: Interrupt): Terminal {
  const isTerminal = process.stdin.isTTY === true
  const lines = createInterface({
    input: process.stdin,
    output: process.stderr,
    terminal: isTerminal && process.stderr.isTTY === true,
    prompt: isTerminal ? '> ' : '',
  })
  let replying: AbortController | undefined
  lines.on('SIGINT', () => {
    if (replying === undefined || replying.signal.aborted) interrupt.trigger()
    else replying.abort()
  })
  interrupt.signal.addEventListener('abort', () => lines.close(), { once: true })
  return {
    lines,
    prompt: () => lines.prompt(),
    write: writeOut,
    note,
    noteError: (error) => note(describeError(error, command)),
    beginReply() {
      replying = new AbortController()
      return replying.signal
    },
    endReply() {
      replying = undefined
    },
    close: () => lines.close(),
  }
}

async function runChat(
  model: string,
  flags: ChatFlags,
  command: Command,
  interrupt: Interrupt,
): Promise<void> {
  const { signal } = interrupt
  await withEngine(model, readEngineOptions(flags), signal, async (engine) => {
    await requireChat(engine)
    const { architecture } = engine.info
    if (process.stdin.isTTY) note(`${architecture}: /reset, /exit; Ctrl-C stops a reply`)
    await converse(engine, openTerminal(command, interrupt), {
      opening: flags.system === undefined ? [] : [{ role: 'system', content: flags.system }],
      request: readSamplingOptions(flags),
      signal,
    })
  })
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
    .action((model: string, flags: ChatFlags) => runChat(model, flags, command, interrupt))
}
