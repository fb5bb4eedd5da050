/**
 * `nanoweave serve`: the OpenAI-compatible server. The first SIGTERM or SIGINT drains: not ready at
 * once, accepted requests end, exit code 0. The second one ends the process.
 */

import { type Command, InvalidArgumentError, Option } from 'commander'
import type { Interrupt } from '../interrupt.ts'
import {
  addEngineOptions,
  addSchedulerOptions,
  type EngineFlags,
  parseCount,
  parseNumber,
  readEngineOptions,
} from '../options.ts'
import { note } from '../output.ts'
import { withEngine } from '../with-engine.ts'

interface ServeFlags extends EngineFlags {
  readonly host: string
  readonly port: number
  readonly servedModelName?: string
  readonly apiKey?: string[]
  readonly guardAll?: boolean
  readonly toolFormat: string
  readonly reasoning?: boolean
  readonly toolPinTtl: number
  readonly logLevel: string
  readonly drain: number
  readonly maxNumSeqs?: number
  readonly maxWaiting?: number
}

const examples = `
The key may also come from the environment: NANOWEAVE_API_KEY (several with commas between).

Examples:
  nanoweave serve MODEL
  nanoweave serve MODEL --host 0.0.0.0 --port 8080 --served-model-name tiny
  NANOWEAVE_API_KEY=secret nanoweave serve MODEL --tp 2

  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "What is 12 + 7?"}]}'`

const LAST_BYTES_SECONDS = 1

function parsePort(text: string): number {
  const port = parseCount(text)
  if (port > 65535) throw new InvalidArgumentError('not a port')
  return port
}

function readKeys(flags: ServeFlags): string[] {
  const fromEnvironment = process.env.NANOWEAVE_API_KEY?.split(',') ?? []
  return [...(flags.apiKey ?? []), ...fromEnvironment]
    .map((key) => key.trim())
    .filter((key) => key !== '')
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}

async function within(promise: Promise<void>, seconds: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const elapsed = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, seconds * 1000)
  })
  await Promise.race([promise, elapsed])
  clearTimeout(timer)
}

async function runServe(model: string, flags: ServeFlags, interrupt: Interrupt): Promise<void> {
  const { signal } = interrupt
  const { maxNumSeqs, maxWaiting } = flags
  const options = {
    ...readEngineOptions(flags),
    ...(maxNumSeqs !== undefined && { maxNumSeqs }),
    ...(maxWaiting !== undefined && { maxWaiting }),
  }
  const { createServer } = await import('../../server/server.ts')
  await withEngine(model, options, signal, async (engine) => {
    const server = createServer(engine, {
      apiKeys: readKeys(flags),
      guardAll: flags.guardAll === true,
      toolFormat: flags.toolFormat,
      toolPinTtlMs: 1000 * flags.toolPinTtl,
      logLevel: flags.logLevel,
      ...(flags.servedModelName !== undefined && { modelName: flags.servedModelName }),
      ...(flags.reasoning !== undefined && { reasoning: flags.reasoning }),
    })
    try {
      await engine.warmUp()
      const address = await server.listen(flags.port, flags.host)
      note(`nanoweave: ${server.modelName} at ${address}`)
      await aborted(signal)
      interrupt.endWell()
      note('nanoweave: draining; a second signal ends at once')
      const drained = server.drain()
      await within(drained, flags.drain)
      // Streams that are left end with an error event, which their clients may still read.
      await engine.close()
      await within(drained, LAST_BYTES_SECONDS)
    } finally {
      await server.close()
    }
  })
}

export function registerServe(program: Command, interrupt: Interrupt): void {
  const command = program
    .command('serve')
    .argument('<MODEL>', 'model folder')
    .summary('serve a model over HTTP, as OpenAI does')
    .description("Serves a model over HTTP for OpenAI's clients.")
    .option('--host <HOST>', 'address to listen on', '127.0.0.1')
    .option('--port <PORT>', 'port; 0: any free one', parsePort, 8000)
    .option('--served-model-name <NAME>', "name clients ask for (default: the folder's)")
    .option('--api-key <KEY...>', 'keys that open /v1, /tokenize and /detokenize')
    .option('--guard-all', 'the key guards every route')
    .option('--tool-format <FORMAT>', 'auto, none, hermes, llama3, mistral, gpt-oss', 'auto')
    .option('--reasoning', 'split <think> from answers (default: if the model has it)')
    .option('--no-reasoning', 'leave <think> in answers')
    .option('--tool-pin-ttl <SECONDS>', 'keep the KV of turns that call tools', parseNumber, 0)
    .option('--max-num-seqs <N>', 'sequences that run at once', parseCount)
    .option('--max-waiting <N>', 'requests that may wait', parseCount)
    .option('--drain <SECONDS>', 'time to end after a signal', parseCount, 30)
    .addOption(
      new Option('--log-level <LEVEL>', 'what is logged to stderr')
        .choices(['debug', 'info', 'warn', 'error', 'silent'])
        .default('info'),
    )
  addSchedulerOptions(addEngineOptions(command))
    .addHelpText('after', examples)
    .action((model: string, flags: ServeFlags) => runServe(model, flags, interrupt))
}
