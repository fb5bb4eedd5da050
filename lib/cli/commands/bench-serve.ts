/** `nanoweave bench serve`: load on a server that speaks OpenAI's API, and what it made of it. */

import { readFile, stat } from 'node:fs/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { ServeBenchReport } from '../../bench/serve/index.ts'
import { EngineError, systemReason } from '../../errors.ts'
import { ARRIVAL_PROCESSES, type ArrivalName } from '../../workload/index.ts'
import { EXIT_FAILED } from '../exit-codes.ts'
import { parseCount, parseNumber } from '../options.ts'
import { note, writeOut } from '../output.ts'
import { createBar } from '../progress.ts'
import { checkFolders, saveFile } from '../save.ts'

interface BenchServeFlags {
  readonly url: string
  readonly model?: string
  readonly apiKey?: string
  readonly endpoint: 'completions' | 'chat'
  readonly trace: string
  readonly arrivals?: ArrivalName
  readonly rate?: number
  readonly concurrency?: number
  readonly requests?: number
  readonly duration?: number
  readonly seed: number
  readonly maxPrompt?: number
  readonly maxOutput?: number
  readonly ignoreEos: boolean
  readonly timeout: number
  readonly ttftMs?: number
  readonly tpotMs?: number
  readonly json?: string
  readonly html?: string
  readonly compare?: true
}

/** A recorded trace is read whole. */
const MAX_TRACE_BYTES = 2 ** 28

const examples = `
Lengths are those published for the named trace, or recorded ones: JSON lines with promptTokens, outputTokens and
arrivalMs, or the CSV of AzurePublicDataset. Prompts are random words, as many as make the wanted number of tokens.
The key may also come from the environment: NANOWEAVE_API_KEY.

Examples:
  nanoweave bench serve --rate 4 --duration 60 --ttft-ms 500 --tpot-ms 50
  nanoweave bench serve --url http://10.0.0.7:8000 --trace sharegpt --arrivals gamma --rate 10 --requests 500
  nanoweave bench serve --concurrency 32 --requests 200 --json after.json
  nanoweave bench serve --compare before.json after.json`

function parsePositive(text: string): number {
  const value = parseNumber(text)
  if (value <= 0) throw new InvalidArgumentError('must be more than 0')
  return value
}

function parsePositiveCount(text: string): number {
  const value = parseCount(text)
  if (value < 1 || value > 1_000_000)
    throw new InvalidArgumentError('expected a whole number from 1 to 1000000')
  return value
}

async function readText(file: string): Promise<string> {
  try {
    const { size } = await stat(file)
    if (size > MAX_TRACE_BYTES)
      throw new EngineError('ERR_USAGE', `${file} has ${size} bytes; at most ${MAX_TRACE_BYTES}`)
    return await readFile(file, 'utf8')
  } catch (cause) {
    if (cause instanceof EngineError) throw cause
    throw new EngineError('ERR_IO', `cannot read ${file}: ${systemReason(cause)}`, { cause })
  }
}

async function compareFiles(files: readonly string[]): Promise<void> {
  const { formatComparison, parseReport } = await import('../../bench/serve/index.ts')
  if (files.length !== 2)
    throw new EngineError('ERR_USAGE', '--compare takes two files of --json, the earlier one first')
  const [before, after] = await Promise.all(
    files.map(async (file) => parseReport(await readText(file), file)),
  )
  await writeOut(formatComparison(before, after))
}

async function measure(flags: BenchServeFlags, signal: AbortSignal): Promise<ServeBenchReport> {
  const { runServeBench, TRACE_NAMES } = await import('../../bench/serve/index.ts')
  const { trace, concurrency } = flags
  const bar = createBar('bench serve')
  try {
    return await runServeBench({
      url: flags.url,
      model: flags.model,
      apiKey: flags.apiKey ?? process.env.NANOWEAVE_API_KEY?.split(',')[0],
      endpoint: flags.endpoint,
      ignoreEos: flags.ignoreEos,
      timeoutMs: flags.timeout * 1000,
      seed: flags.seed,
      signal,
      trace: {
        name: trace,
        text: TRACE_NAMES.includes(trace) ? undefined : await readText(trace),
      },
      arrivals: flags.arrivals,
      rate: flags.rate,
      concurrency,
      numRequests: flags.requests,
      durationMs: flags.duration === undefined ? undefined : flags.duration * 1000,
      maxPromptTokens: flags.maxPrompt,
      maxOutputTokens: flags.maxOutput,
      targets: { ttftMs: flags.ttftMs, tpotMs: flags.tpotMs },
      onProgress: (done, total) => bar.draw(done, total, `${done} of ${total} requests`),
    })
  } finally {
    bar.clear()
  }
}

async function runBenchServe(
  files: readonly string[],
  flags: BenchServeFlags,
  signal: AbortSignal,
): Promise<void> {
  if (flags.compare === true) return compareFiles(files)
  if (files.length > 0) throw new EngineError('ERR_USAGE', `what is ${files[0]}? See --help`)
  await checkFolders([flags.json, flags.html])
  const report = await measure(flags, signal)
  const { formatReport, renderHtml } = await import('../../bench/serve/index.ts')
  const document = `${JSON.stringify(report, null, 2)}\n`
  await writeOut(flags.json === '-' ? document : formatReport(report))
  if (flags.json !== undefined && flags.json !== '-') await saveFile(flags.json, document)
  if (flags.html !== undefined) await saveFile(flags.html, renderHtml(report))
  if (report.lateStarts > report.requests / 100)
    note(
      `${report.lateStarts} requests were sent late: the client or its machine could not keep up`,
    )
  if (report.succeeded === 0) process.exitCode = EXIT_FAILED
}

export function registerBenchServe(bench: Command, signal: AbortSignal): void {
  bench
    .command('serve')
    .argument('[FILES...]', 'two reports, with --compare')
    .summary('put load on a server and measure it')
    .description(
      "Sends a workload to any server that speaks OpenAI's API, and measures its answers.",
    )
    .option('--url <URL>', 'the server', 'http://127.0.0.1:8000')
    .option('--model <NAME>', 'model to ask for (default: the first it lists)')
    .option('--api-key <KEY>', 'its key')
    .addOption(
      new Option('--endpoint <E>', 'what to call')
        .choices(['completions', 'chat'])
        .default('completions'),
    )
    .option('--trace <NAME|FILE>', 'azure-conversation, lmsys, sharegpt, or a file', 'lmsys')
    .addOption(
      new Option('--arrivals <A>', 'how requests come (default: poisson, or as recorded)').choices(
        ARRIVAL_PROCESSES.map(({ name }) => name),
      ),
    )
    .option('--rate <R>', 'requests a second, on average', parsePositive)
    .option('--concurrency <N>', 'closed loop: requests open at any time', parsePositiveCount)
    .option('--requests <N>', 'how many', parsePositiveCount)
    .option('--duration <SECONDS>', 'for how long requests are sent', parsePositive)
    .option('--seed <S>', 'the same requests again', parseCount, 1)
    .option('--max-prompt <TOKENS>', 'longer prompts are cut', parsePositiveCount)
    .option('--max-output <TOKENS>', 'longer outputs are cut', parsePositiveCount)
    .option('--no-ignore-eos', 'let the model end its output by itself')
    .option('--timeout <SECONDS>', 'a request that takes longer failed', parsePositive, 600)
    .option('--ttft-ms <MS>', 'goodput: time to the first token at most', parsePositive)
    .option('--tpot-ms <MS>', 'goodput: time per further token at most', parsePositive)
    .option('--json <FILE>', 'write the report as JSON (-: to stdout)')
    .option('--html <FILE>', 'write the report as one HTML page')
    .option('--compare', 'compare two reports')
    .addHelpText('after', examples)
    .action((files: string[], flags: BenchServeFlags) => runBenchServe(files, flags, signal))
}
