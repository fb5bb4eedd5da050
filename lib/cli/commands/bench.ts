/**
 * `nanoweave bench SUITE`: verifies, measures and prints one bench suite. The table goes to stdout,
 * progress to stderr; --json and --html write files (`--json -` prints the document instead of the
 * table). Exits 1 when a result was wrong.
 */

import { writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import { renderHtml } from '../../bench/html.ts'
import { BENCH_SUITES, findSuite, parseSettings, parseSizes, runBench } from '../../bench/index.ts'
import { countWrong, formatReport } from '../../bench/report.ts'
import { EngineError } from '../../errors.ts'

interface BenchFlags {
  readonly list?: true
  readonly ranks: number
  readonly threads: number
  readonly device: string
  readonly dtype: string
  readonly sizes?: string
  readonly rounds: number
  readonly quiet?: number
  readonly set: readonly string[]
  readonly cache: string
  readonly peaks?: string
  readonly json?: string
  readonly html?: string
}

function parseCount(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1 || value > 4096) {
    throw new InvalidArgumentError('expected a whole number from 1 to 4096')
  }
  return value
}

function parseShare(text: string): number {
  const value = Number(text)
  if (!(value >= 0 && value <= 1)) throw new InvalidArgumentError('expected a number from 0 to 1')
  return value
}

function listSuites(): string {
  const width = Math.max(...BENCH_SUITES.map((suite) => suite.name.length))
  return BENCH_SUITES.map((suite) => {
    const sizes = suite.defaultSizes.map((size) => size.join('x')).join(',')
    return `${suite.name.padEnd(width)}  ${suite.summary}\n${' '.repeat(width)}  --sizes ${sizes} (${suite.sizeNames.join(' x ')})\n`
  }).join('')
}

async function runBenchCommand(name: string | undefined, flags: BenchFlags): Promise<void> {
  if (flags.list === true) {
    process.stdout.write(listSuites())
    return
  }
  if (name === undefined) {
    throw new EngineError('ERR_USAGE', 'name a suite; `nanoweave bench --list` shows them')
  }
  const { dtype, device } = flags
  if (dtype !== 'f32' && dtype !== 'bf16') {
    throw new EngineError('ERR_USAGE', `dtype ${dtype}: benches run at f32 or bf16`)
  }
  if (device !== 'cpu') {
    throw new EngineError('ERR_UNSUPPORTED_OPTION', `device ${device}: these suites run on cpu`)
  }
  const suite = findSuite(name)
  const report = await runBench(
    suite,
    {
      ranks: flags.ranks,
      threads: flags.threads,
      device,
      dtype,
      sizes: parseSizes(flags.sizes, suite),
      rounds: flags.rounds,
      cacheDirectory: flags.cache,
      quiet: flags.quiet,
      settings: parseSettings(flags.set),
      log: (line) => process.stderr.write(`${line}\n`),
    },
    flags.peaks ?? path.join(flags.cache, 'bench-peaks.json'),
  )
  const document = `${JSON.stringify(report, null, 2)}\n`
  process.stdout.write(flags.json === '-' ? document : formatReport(report))
  if (flags.json !== undefined && flags.json !== '-') writeFileSync(flags.json, document)
  if (flags.html !== undefined) writeFileSync(flags.html, renderHtml(report))
  if (countWrong(report) > 0) {
    process.stderr.write('some results are wrong: see the last column\n')
    process.exitCode = 1
  }
}

export function addBenchCommand(program: Command): void {
  program
    .command('bench')
    .description('measure one suite: verify first, then time')
    .argument('[suite]', 'which suite; see --list')
    .option('--list', 'show the suites and their default sizes')
    .option('--ranks <count>', 'ranks', parseCount, 1)
    .option('--threads <count>', 'CPU threads of all ranks', parseCount, os.availableParallelism())
    .option('--device <name>', 'where to run', 'cpu')
    .option('--dtype <dtype>', 'f32 or bf16', 'bf16')
    .option('--sizes <sizes>', 'like 1x512x64,8x128x64; what they mean is in --list')
    .option('--rounds <count>', 'measurements of each side, in turn', parseCount, 7)
    .option(
      '--quiet <share>',
      'repeat what other processes disturbed by more than this',
      parseShare,
    )
    .option('--set <name=value...>', 'options of one suite', [])
    .option('--cache <folder>', 'bench models and peers', 'build')
    .option('--peaks <file>', "the machine's ceilings (default: <cache>/bench-peaks.json)")
    .option('--json <file>', 'write the report as JSON; - prints it instead of the table')
    .option('--html <file>', 'write the report as one HTML page')
    .action(runBenchCommand)
}
