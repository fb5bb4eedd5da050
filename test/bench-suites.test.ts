/**
 * Every suite at small sizes: the programs load and run, and the results that the suite itself
 * checks are right. Times are not looked at.
 */

import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type BenchContext, findSuite, formatReport, runSuite } from '../lib/bench/index.ts'
import type { BenchReport } from '../lib/bench/suite.ts'

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(path.join(os.tmpdir(), 'bench-suites-'))
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

function runSmall(
  name: string,
  sizes: readonly (readonly number[])[],
  options: Partial<BenchContext> = {},
  peaks = 'none.json',
): Promise<BenchReport> {
  const context: BenchContext = {
    ranks: 1,
    threads: 2,
    device: 'cpu',
    dtype: 'bf16',
    sizes,
    rounds: 1,
    cacheDirectory: scratch,
    quiet: undefined,
    settings: new Map(),
    signal: new AbortController().signal,
    log: () => {},
    ...options,
  }
  return runSuite(findSuite(name), context, path.join(scratch, peaks))
}

describe.each(['f32', 'bf16'] as const)('suites at %s', (dtype) => {
  it.each([
    ['copy', [[3, 40]], 1],
    [
      'rms-norm',
      [
        [1, 64],
        [5, 48],
      ],
      1,
    ],
    ['rms-norm', [[5, 48]], 2],
    [
      'matmul',
      [
        [1, 33, 40],
        [7, 48, 64],
      ],
      1,
    ],
    ['attention-prefill', [[17], [40]], 1],
    [
      'attention-decode',
      [
        [1, 33],
        [3, 16],
      ],
      1,
    ],
    [
      'all-reduce',
      [
        [1, 64],
        [19, 32],
      ],
      2,
    ],
    [
      'overlap',
      [
        [1, 64, 96],
        [37, 48, 80],
      ],
      2,
    ],
    ['overlap', [[9, 64, 96]], 4],
    [
      'moe-route',
      [
        [1, 16, 2],
        [9, 32, 4],
      ],
      1,
    ],
    ['moe-dispatch', [[7, 32, 8, 2]], 2],
    ['grouped-matmul', [[24, 4, 32, 40]], 1],
    ['moe-layer', [[9, 48, 32, 8, 2]], 2],
    ['moe-layer', [[3, 48, 32, 8, 2]], 1],
    [
      'all-reduce-rms-norm',
      [
        [1, 64],
        [37, 32],
      ],
      2,
    ],
  ] as const)('%s %j on %i ranks is right', async (name, sizes, ranks) => {
    const report = await runSmall(name, sizes, { dtype, ranks })
    expect(report.rows.length).toBeGreaterThanOrEqual(sizes.length)
    for (const row of report.rows) {
      // Routing is float32 whatever the activations are.
      const rowDtype = name === 'moe-route' ? 'f32' : dtype
      expect(row).toMatchObject({ wrong: 0, ranks, dtype: rowDtype })
      expect(row.checked).toBeGreaterThan(0)
      expect(row.ours.medianUs).toBeGreaterThan(0)
    }
  })
})

it('overlap: every schedule beside the serial layer, with its share of hidden communication', async () => {
  const report = await runSmall('overlap', [[19, 64, 96]], { ranks: 2 })
  const [serial, ...overlapped] = report.rows
  expect(serial).toMatchObject({ variant: 'serial', checked: 2 * 16 })
  expect(overlapped.map(({ variant }) => variant)).toEqual([
    '2 nano-batches',
    'matmul_all_reduce',
    'matmul_reduce_scatter, all_gather_matmul',
  ])
  for (const row of overlapped) {
    expect(row).toMatchObject({ baseline: serial!.ours, gemm: serial!.gemm, checked: 19 * 64 })
  }
  const text = formatReport(report)
  for (const column of ['T_gemm µs', 'ECT µs', 'E']) expect(text).toContain(column)
  expect(text).toContain('in turn')
  expect(report.details.schedules).toHaveLength(4)
  const one = runSmall('overlap', [[4, 64, 96]])
  await expect(one).rejects.toMatchObject({ code: 'ERR_USAGE' })
  const uneven = runSmall('overlap', [[4, 64, 95]], { ranks: 2 })
  await expect(uneven).rejects.toMatchObject({ code: 'ERR_USAGE' })
})

it('takes the heads of attention from a setting', async () => {
  const settings = new Map([['heads', '6x2x32']])
  const report = await runSmall('attention-decode', [[2, 40]], { settings })
  // Keys and values of 2 heads over 80 tokens, queries and outputs of 6 over 2 rows.
  expect(report.rows[0]).toMatchObject({ wrong: 0, bytes: 2 * 32 * (80 * 2 * 2 + 2 * 2 * 6) })
  for (const heads of ['6x4x32', '6x2', 'axbxc', '6x2x32x1']) {
    const bad = new Map([['heads', heads]])
    await expect(runSmall('attention-decode', [[2, 40]], { settings: bad })).rejects.toMatchObject({
      code: 'ERR_USAGE',
    })
  }
})

it('names a device that is not there, and refuses other names and peaks', async () => {
  await expect(runSmall('copy', [[3, 40]], { device: 'cuda:99' })).rejects.toMatchObject({
    code: 'ERR_NO_DEVICE',
  })
  await expect(runSmall('copy', [[3, 40]], { device: 'gpu' })).rejects.toMatchObject({
    code: 'ERR_USAGE',
  })
  const rate = { best: 1e12, median: 1e12 }
  const peaks = {
    threads: 132,
    device: 'NVIDIA H200',
    readBytesPerSecond: rate,
    copyBytesPerSecond: rate,
    f32FlopPerSecond: rate,
    bf16FlopPerSecond: rate,
    instructionSet: 'sm_90',
  }
  writeFileSync(path.join(scratch, 'gpu.json'), JSON.stringify(peaks))
  await expect(runSmall('copy', [[3, 40]], {}, 'gpu.json')).rejects.toMatchObject({
    code: 'ERR_USAGE',
  })
})

it('ends when its signal is aborted', async () => {
  await expect(runSmall('copy', [[3, 40]], { signal: AbortSignal.abort() })).rejects.toMatchObject({
    name: 'AbortError',
  })
})

it('bench engine runs alone when node-llama-cpp is not installed', async () => {
  const json = path.join(scratch, 'engine.json')
  const html = path.join(scratch, 'engine.html')
  const { stdout } = await promisify(execFile)(process.execPath, [
    ...['--import', 'tsx', 'lib/cli/main.ts', 'bench', 'engine', '--set', 'model=tiny'],
    ...['--sizes', '1x24x6,3x9x12', '--rounds', '2', '--cache', scratch],
    ...['--json', json, '--html', html],
  ])
  expect(stdout).toContain('npm install')
  expect(readFileSync(html, 'utf8')).toContain('<svg')
  const report: BenchReport = JSON.parse(readFileSync(json, 'utf8'))
  expect(report.rows.map((row) => `${row.op} ${row.shape}`)).toEqual([
    'prefill 1×24',
    'decode 1×24+6',
    'prefill 3×9',
    'decode 3×9+12',
  ])
  for (const row of report.rows) expect(row).toMatchObject({ wrong: 0 })
  const { memory } = report.details.nanoweave as { memory: { peakRssBytes: number } }
  expect(memory.peakRssBytes).toBeGreaterThan(0)
})

it('bench moe-decode: the dense copies of the demo model compute one function', async () => {
  const json = path.join(scratch, 'moe-decode.json')
  await promisify(execFile)(process.execPath, [
    ...['--import', 'tsx', 'lib/cli/main.ts', 'bench', 'moe-decode'],
    ...['--sizes', '1x4x6', '--rounds', '1', '--cache', scratch, '--json', json],
  ])
  const { rows }: BenchReport = JSON.parse(readFileSync(json, 'utf8'))
  expect(rows.map(({ variant }) => variant)).toEqual(['vs dense', 'vs all experts'])
  for (const { checked, wrong } of rows) expect([checked, wrong]).toEqual([64, 0])
})
