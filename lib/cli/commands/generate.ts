/** `nanoweave generate`: continues a prompt or answers a chat message, streamed or as JSON. */

import type { Command } from 'commander'
import type { GenerateChunk, GenerateRequest } from '../../engine/types.ts'
import { EngineError } from '../../errors.ts'
import type { Interrupt } from '../interrupt.ts'
import {
  addEngineOptions,
  addSamplingOptions,
  type EngineFlags,
  parseTokens,
  readEngineOptions,
  readSamplingOptions,
  type SamplingFlags,
} from '../options.ts'
import { formatNumber, note, writeJson, writeOut } from '../output.ts'
import { readStdin } from '../read-stdin.ts'
import { withEngine } from '../with-engine.ts'

interface GenerateFlags extends EngineFlags, SamplingFlags {
  readonly prompt?: string
  readonly chat?: string
  readonly tokens?: number[]
  readonly json?: boolean
}

const examples = `
Examples:
  nanoweave generate MODEL --prompt "Once upon a time" --max-tokens 64
  nanoweave generate MODEL --chat "What is 12 + 7?" --temperature 0 --json`

async function readInput(flags: GenerateFlags, signal: AbortSignal): Promise<GenerateRequest> {
  const { prompt, chat, tokens } = flags
  if ([prompt, chat, tokens].filter((input) => input !== undefined).length !== 1) {
    throw new EngineError('ERR_USAGE', 'give exactly one of --prompt, --chat and --tokens')
  }
  if (tokens !== undefined) return { tokens }
  if (prompt === '-') return { prompt: await readStdin(signal) }
  return chat === undefined ? { prompt: prompt! } : { messages: [{ role: 'user', content: chat }] }
}

function summarize({ usage, timings, finishReason }: GenerateChunk): string {
  const speed = timings === undefined ? '' : `, ${formatNumber(timings.tokensPerSecond)} tokens/s`
  return `${usage?.completionTokens ?? 0} tokens${speed}, ended by ${finishReason ?? 'nothing'}`
}

/** Chunks of ids to one list, as --tokens takes it: 1,2,3. For models without a tokenizer. */
function listIds(): (tokens: readonly number[]) => string {
  let separator = ''
  return (tokens) =>
    tokens
      .map((id) => {
        const text = `${separator}${id}`
        separator = ','
        return text
      })
      .join('')
}

async function runGenerate(
  model: string,
  flags: GenerateFlags,
  signal: AbortSignal,
): Promise<void> {
  const input = await readInput(flags, signal)
  const request = { ...input, ...readSamplingOptions(flags), signal }
  await withEngine(model, readEngineOptions(flags), signal, async (engine) => {
    if (flags.json === true) {
      const { text, tokens, finishReason, stopReason, usage, timings } =
        await engine.complete(request)
      await writeJson({ text, tokens, finishReason, stopReason, usage, timings })
      return
    }
    let last: GenerateChunk | undefined
    const ids = listIds()
    for await (const chunk of engine.generate(request)) {
      await writeOut(engine.tokenizer === undefined ? ids(chunk.tokens) : chunk.text)
      last = chunk
    }
    await writeOut('\n')
    if (last !== undefined) note(summarize(last))
  })
}

export function registerGenerate(program: Command, { signal }: Interrupt): void {
  const command = program
    .command('generate')
    .argument('<MODEL>', 'model folder')
    .summary('continue a prompt, or answer one message')
    .description('Continues a prompt as it is, or answers a message through the chat template.')
    .option('--prompt <TEXT>', 'raw text to continue; -: from stdin')
    .option('--chat <TEXT>', 'a message, through the chat template')
    .option('--tokens <IDS>', 'token ids to continue: 1,2,3', parseTokens)
    .option('--json', 'one JSON document instead of text')
  addSamplingOptions(addEngineOptions(command))
    .addHelpText('after', examples)
    .action((model: string, flags: GenerateFlags) => runGenerate(model, flags, signal))
}
