/**
 * Measures all CPU suites one after another and writes one file of results, from which
 * docs/benchmarks.md takes its tables:
 *
 *   npx tsx bench/record.ts [--quiet 0.05] [--rounds 7] [--only engine,matmul] [--out bench/results/cpu.json]
 *
 * Suites that are not run keep the results they have in the file. Needs build/bench-peaks.json (bench/peaks.ts)
 * and node-llama-cpp (docs/benchmarks.md).
 */

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import { parseArgs } from 'node:util'
import {
  type BenchReport,
  countWrong,
  findSuite,
  formatReport,
  runSuite,
} from '../lib/bench/index.ts'
import { EngineError } from '../lib/errors.ts'
import { renderTables } from './table.ts'

interface Recording {
  readonly suite: string
  readonly ranks: number
  /** All cores when absent. */
  readonly threads?: number
  /** Its weights stay in a cache: the speed of memory is no bound. */
  readonly peaks?: 'none'
  /** The suite's own when absent. */
  readonly sizes?: readonly (readonly number[])[]
}

const RECORDINGS: readonly Recording[] = [
  { suite: 'engine', ranks: 1 },
  { suite: 'engine', ranks: 2, sizes: [[1, 512, 64]] },
  { suite: 'matmul', ranks: 1 },
  { suite: 'attention-prefill', ranks: 1 },
  { suite: 'attention-decode', ranks: 1 },
  { suite: 'rms-norm', ranks: 1 },
  { suite: 'copy', ranks: 1 },
  { suite: 'moe-route', ranks: 1 },
  { suite: 'moe-dispatch', ranks: 2 },
  { suite: 'grouped-matmul', ranks: 1 },
  { suite: 'moe-layer', ranks: 2 },
  // A step is so short that on a shared machine a second thread mostly waits for its core.
  { suite: 'moe-decode', ranks: 1, threads: 1, peaks: 'none' },
  { suite: 'all-reduce', ranks: 2 },
  { suite: 'all-reduce-rms-norm', ranks: 2 },
  { suite: 'overlap', ranks: 2 },
]

const { values } = parseArgs({
  options: {
    quiet: { type: 'string' },
    rounds: { type: 'string', default: '7' },
    only: { type: 'string' },
    out: { type: 'string', default: 'bench/results/cpu.json' },
  },
})

const only = values.only?.split(',')
const earlier: BenchReport[] = existsSync(values.out)
  ? JSON.parse(readFileSync(values.out, 'utf8')).reports
  : []
const reports: BenchReport[] = []
for (const { suite: name, ranks, threads, peaks, sizes } of RECORDINGS) {
  if (only !== undefined && !only.includes(name)) {
    const kept = earlier.find((report) => report.suite === name && report.options.ranks === ranks)
    if (kept !== undefined) reports.push(kept)
    continue
  }
  const suite = findSuite(name)
  const report = await runSuite(
    suite,
    {
      ranks,
      threads: threads ?? os.availableParallelism(),
      device: 'cpu',
      dtype: 'bf16',
      sizes: sizes ?? suite.defaultSizes,
      rounds: Number(values.rounds),
      cacheDirectory: 'build',
      quiet: values.quiet === undefined ? undefined : Number(values.quiet),
      settings: new Map(),
      signal: new AbortController().signal,
      log: (line) => process.stderr.write(`${line}\n`),
    },
    peaks ?? 'build/bench-peaks.json',
  )
  process.stdout.write(`${formatReport(report)}\n`)
  if (countWrong(report) > 0) {
    throw new EngineError('ERR_INTERNAL', `bench ${name}: wrong results are not recorded`)
  }
  reports.push(report)
}
writeFileSync(values.out, `${JSON.stringify({ version: 1, reports }, null, 2)}\n`)
process.stdout.write(renderTables(reports))
