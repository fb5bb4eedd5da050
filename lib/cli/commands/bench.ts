/**
 * `nanoweave bench SUITE`: verifies, measures and prints one bench suite. The table goes to stdout,
 * progress to stderr. Exits 1 when a result was wrong.
 */

import os from 'node:os'
import path from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { BenchContext, BenchSuite } from '../../bench/index.ts'
import { EngineError } from '../../errors.ts'
import { hardwarePreset } from '../../planner/presets.ts'
import { EXIT_FAILED } from '../exit-codes.ts'
import type { Interrupt } from '../interrupt.ts'
import { parseNumber } from '../options.ts'
import { note, writeOut } from '../output.ts'
import { checkFolders, saveFile } from '../save.ts'
import { registerBenchServe } from './bench-serve.ts'

interface BenchFlags {
  readonly list?: true
  readonly tune?: string | true
  readonly ranks: number
  readonly threads: number
  readonly device: string
  readonly dtype: 'f32' | 'bf16'
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
  const value = parseNumber(text)
  if (value < 0 || value > 1) throw new InvalidArgumentError('expected a number from 0 to 1')
  return value
}

const examples = `
--json - prints the report instead of the table. What the columns mean, and how to get the peaks file
and node-llama-cpp, is in docs/benchmarks.md.

Examples:
  nanoweave bench --list
  nanoweave bench engine --json engine.json --html engine.html
  nanoweave bench matmul --sizes 1x4096x4096,512x4096x4096
  nanoweave bench all-reduce-rms-norm --ranks 2
  nanoweave bench attention-decode --device cuda --sizes 32x8192`

/** Suites with their sizes, for --list. */
function formatSuites(suites: readonly BenchSuite[]): string {
  const width = Math.max(...suites.map((suite) => suite.name.length))
  const indent = ' '.repeat(width)
  const list = (sizes: readonly (readonly number[])[]) =>
    sizes.map((size) => size.join('x')).join(',')
  return suites
    .map(({ name, summary, sizeNames, defaultSizes, gpuSizes, settingNames }) => {
      return [
        `${name.padEnd(width)}  ${summary}\n`,
        `${indent}  --sizes ${list(defaultSizes)}  (${sizeNames.join(' x ')})\n`,
        `${indent}  on a GPU ${list(gpuSizes)}\n`,
        `${indent}  --set ${settingNames.join(', ')}\n`,
      ].join('')
    })
    .join('')
}

/** Measures this machine for the planner; prints the tune file, or writes it. */
async function runTune(flags: BenchFlags, tune: string | true, signal: AbortSignal): Promise<void> {
  const { tuneHardware, backendOf } = await import('../../bench/index.ts')
  const { ranks, threads, device, dtype, quiet, cache } = flags
  if (backendOf(device) !== 'cpu') {
    throw new EngineError(
      'ERR_UNSUPPORTED_OPTION',
      'bench --tune measures the CPU; for a GPU take a preset (nanoweave plan --list-presets)',
    )
  }
  const rounds = Math.min(flags.rounds, 3)
  const context = {
    ...{ ranks, threads, device, dtype, rounds, quiet, signal },
    cacheDirectory: cache,
    log: note,
  }
  const hardware = await tuneHardware(context, hardwarePreset('cpu'))
  const document = `${JSON.stringify(hardware, null, 2)}\n`
  if (tune === true || tune === '-') return writeOut(document)
  await saveFile(tune, document)
}

async function runBench(
  name: string | undefined,
  flags: BenchFlags,
  signal: AbortSignal,
): Promise<void> {
  const bench = await import('../../bench/index.ts')
  if (flags.list === true) return writeOut(formatSuites(bench.BENCH_SUITES))
  if (flags.tune !== undefined) return runTune(flags, flags.tune, signal)
  if (name === undefined) {
    throw new EngineError('ERR_USAGE', 'name a suite; `nanoweave bench --list` shows them')
  }
  const suite = bench.findSuite(name)
  const { ranks, threads, device, dtype, rounds, quiet, cache } = flags
  const backend = bench.backendOf(device)
  const context: BenchContext = {
    ranks,
    threads,
    device,
    dtype,
    rounds,
    quiet,
    sizes: bench.parseSizes(flags.sizes, suite, backend),
    settings: bench.parseSettings(flags.set, suite),
    cacheDirectory: cache,
    signal,
    log: note,
  }
  const peaksName = backend === 'cpu' ? 'bench-peaks.json' : 'bench-peaks-gpu.json'
  const peaks = flags.peaks ?? path.join(cache, peaksName)
  await checkFolders([flags.json, flags.html])
  const report = await bench.runSuite(suite, context, peaks)
  const document = `${JSON.stringify(report, null, 2)}\n`
  await writeOut(flags.json === '-' ? document : bench.formatReport(report))
  if (flags.json !== undefined && flags.json !== '-') await saveFile(flags.json, document)
  if (flags.html !== undefined) await saveFile(flags.html, bench.renderHtml(report))
  if (bench.countWrong(report) > 0) {
    note('some results are wrong: see the last column')
    process.exitCode = EXIT_FAILED
  }
}

export function registerBench(program: Command, { signal }: Interrupt): void {
  const bench = program
    .command('bench')
    .enablePositionalOptions()
    .argument('[SUITE]', 'which suite; --list shows them')
    .summary('measure an op or the whole engine')
    .description('Verifies one bench suite, then measures it against the machine and a baseline.')
    .option('--list', 'the suites and their sizes')
    .option('--tune [FILE]', 'measure this machine for `plan --hardware FILE` (default: to stdout)')
    .option('--ranks <W>', 'ranks', parseCount, 1)
    .option(
      '--threads <N>',
      'CPU threads of all ranks together',
      parseCount,
      os.availableParallelism(),
    )
    .option('--device <D>', 'cpu, cuda (ranks go round the GPUs) or cuda:N (all on one)', 'cpu')
    .addOption(
      new Option('--dtype <D>', 'of the operands').choices(['f32', 'bf16']).default('bf16'),
    )
    .option('--sizes <LIST>', 'like 1x512x64,8x128x64')
    .option('--rounds <N>', 'measurements of each side, in turn', parseCount, 7)
    .option('--quiet <SHARE>', 'repeat what others disturbed more than this, 0..1', parseShare)
    .option('--set <NAME=VALUE...>', 'settings of one suite', [])
    .option('--cache <FOLDER>', 'bench models and peers', 'build')
    .option('--peaks <FILE>', 'ceilings of the device (default: in the cache)')
    .option('--json <FILE>', 'write the report as JSON')
    .option('--html <FILE>', 'write the report as one HTML page')
    .addHelpText('after', examples)
    .action((name: string | undefined, flags: BenchFlags) => runBench(name, flags, signal))
  registerBenchServe(bench, signal)
}
