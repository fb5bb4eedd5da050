/** What is made of GPU runs: rows beside their peers, targets, merging, and what may be recorded. */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { describeFailures, gather } from '../bench/gpu/collect.ts'
import {
  deviceSlug,
  formatResults,
  type GpuResults,
  judgeTargets,
  mergeResults,
  renderResults,
  resultRows,
} from '../bench/gpu/results.ts'
import { replaceGpuResults, whyNotRecorded } from '../bench/record-gpu.ts'
import type { BenchReport, BenchRow } from '../lib/bench/suite.ts'

const rate = (best: number) => ({ best, median: best })

const measured = (name: string, medianUs: number) => ({
  name,
  medianUs,
  p99Us: medianUs,
  minUs: medianUs,
  samples: 3,
})

function makeRow(fields: Partial<BenchRow>): BenchRow {
  return {
    op: 'matmul',
    shape: '4096×4096×4096',
    dtype: 'bf16',
    ranks: 1,
    ours: measured('nanoweave', 200),
    bytes: 1e8,
    flops: 1.37e11,
    memoryPeak: 'read',
    computePeak: 'bf16',
    checked: 10,
    wrong: 0,
    ...fields,
  }
}

function makeReport(suite: string, rows: readonly BenchRow[], ranks = 1): BenchReport {
  return {
    version: 1,
    suite,
    machine: {
      cpu: 'a CPU',
      cores: 16,
      clocksMhz: [3000],
      memoryBytes: 1e11,
      os: 'Linux x64',
      node: 'v20',
      nanoweave: '0.1.0',
      commit: '0123456789ab',
      loadAverage: 0,
      date: '2026-01-01',
    },
    options: { ranks },
    rows,
    notes: [],
    details: {},
  }
}

const RUN: GpuResults = {
  version: 1,
  device: 'NVIDIA H200',
  gpu: {
    name: 'NVIDIA H200',
    driver: '580.1',
    clocksMhz: { sm: 345, memory: 3201, maxSm: 1980 },
    powerLimitWatts: 700,
  },
  commit: '0123456789ab',
  date: '2026-01-01',
  versions: { node: 'v20', torch: '2.11' },
  steps: [{ name: 'test', state: 'ok', seconds: 3 }],
  tests: { passed: 5, failed: 0, skipped: 1, notRun: 0 },
  peaks: {
    threads: 132,
    device: 'NVIDIA H200',
    readBytesPerSecond: rate(4.4e12),
    copyBytesPerSecond: rate(4e12),
    f32FlopPerSecond: rate(5e13),
    bf16FlopPerSecond: rate(7e14),
    instructionSet: 'sm_90',
  },
  reports: [
    makeReport('matmul', [
      makeRow({}),
      makeRow({ variant: 'own', ours: measured('own', 400) }),
      makeRow({ shape: '1×4096×14336', ours: measured('nanoweave', 50) }),
    ]),
    makeReport('attention-decode', [
      // 1 GB in 250 µs is 4 TB/s: all of the copy bandwidth.
      makeRow({ op: 'attention', shape: '32×8192', bytes: 1e9, ours: measured('nanoweave', 250) }),
    ]),
    makeReport(
      'all-reduce-rms-norm',
      [
        makeRow({
          op: 'all_reduce_rms_norm',
          shape: '4096×8192',
          ranks: 4,
          virtualRanks: true,
          memoryPeak: 'copy',
          bytes: 6e8,
          flops: 1e6,
          baseline: measured('unfused', 280),
        }),
      ],
      4,
    ),
    makeReport('engine', [
      makeRow({ op: 'decode', shape: '1×128+128', ours: measured('nanoweave', 4000), bytes: 16e9 }),
    ]),
  ],
  peers: [
    {
      what: 'ops',
      versions: {},
      rows: [
        { op: 'matmul', shape: '4096×4096×4096', dtype: 'bf16', medianUs: 198 },
        { op: 'matmul', shape: '1×4096×14336', dtype: 'bf16', medianUs: 40 },
      ],
      failures: [],
    },
    {
      what: 'engine',
      versions: {},
      rows: [{ op: 'decode', shape: '1×128', dtype: 'bf16', medianUs: 6000 }],
      failures: [],
    },
  ],
}

describe('GPU results', () => {
  it('stand beside their peers', () => {
    const rows = resultRows(RUN)
    expect(rows[0]!.peer).toMatchObject({ name: 'PyTorch', ratio: 0.99 })
    expect(rows.at(-1)!.peer).toMatchObject({ name: 'transformers', ratio: 1.5 })
  })

  it('are held to the worst of each target, and to nothing that was not measured', () => {
    const targets = judgeTargets(RUN)
    const outcome = (text: string) => targets.find(({ name }) => name.includes(text))
    expect(outcome('decode attention')).toMatchObject({ measured: '100%', isMet: true })
    expect(outcome('matmul')).toMatchObject({ measured: '0.80×', isMet: false })
    expect(outcome('of its bandwidth bound')).toMatchObject({ measured: '75%', isMet: false })
    expect(outcome('unfused')).toMatchObject({ measured: '1.40×', isMet: false })
    expect(outcome('weight-streaming')).toMatchObject({ measured: '91%', isMet: true })
    expect(outcome('transformers')).toMatchObject({ measured: '1.50×', isMet: true })
    expect(outcome('prefill attention')).not.toHaveProperty('measured')
  })

  it('print as a table, with what was missed', () => {
    const text = formatResults(RUN)
    expect(text).toContain('NVIDIA H200, driver 580.1, commit 0123456789ab')
    expect(text).toContain('4 virtual')
    expect(text).toContain('not measured')
    expect(text).toContain('(missed)')
    expect(text).not.toContain('matmul own')
    expect(renderResults(RUN)).toContain('matmul own')
    expect(deviceSlug('NVIDIA H100 80GB HBM3')).toBe('h100')
  })

  it('of several runs are one result of one device and commit', () => {
    const again = makeReport('engine', [makeRow({ op: 'decode', shape: '8×128+128' })])
    const { tests: _, ...second } = RUN
    const later: GpuResults = { ...second, reports: [again], peers: [], steps: [] }
    const merged = mergeResults([RUN, later])
    expect(merged.reports.map(({ suite }) => suite)).toEqual([
      'matmul',
      'attention-decode',
      'all-reduce-rms-norm',
      'engine',
    ])
    expect(merged.reports.at(-1)).toEqual(again)
    expect(merged).toMatchObject({ tests: RUN.tests, peers: RUN.peers, steps: RUN.steps })
    expect(() => mergeResults([RUN, { ...RUN, commit: 'ba9876543210' }])).toThrow('no one result')
  })

  it('are recorded only when they are right and of a GPU', () => {
    expect(whyNotRecorded(RUN)).toBeUndefined()
    const wrong = makeReport('copy', [makeRow({ wrong: 1 })])
    const { tests: _, ...untested } = RUN
    for (const bad of [
      { ...RUN, gpu: null },
      { ...RUN, reports: [wrong] },
      { ...RUN, tests: { ...RUN.tests!, failed: 1 } },
      { ...RUN, commit: '0123456789ab+' },
      untested,
    ]) {
      expect(whyNotRecorded(bad)).toBeDefined()
    }
    const page = readFileSync('docs/benchmarks.md', 'utf8')
    expect(replaceGpuResults(page, renderResults(RUN))).toContain('NVIDIA H200, driver 580.1')
  })
})

describe('the last step of a GPU run', () => {
  let scratch: string
  beforeAll(() => {
    scratch = mkdtempSync(path.join(os.tmpdir(), 'gpu-results-'))
  })
  afterAll(() => rmSync(scratch, { recursive: true, force: true }))

  function run(steps: string, report: BenchReport): GpuResults {
    const [work, out] = ['work', 'out'].map((name) => path.join(scratch, name)) as [string, string]
    for (const folder of [work, out]) mkdirSync(folder, { recursive: true })
    writeFileSync(path.join(work, 'steps'), steps)
    writeFileSync(path.join(work, 'bench-matmul.json'), JSON.stringify(report))
    writeFileSync(path.join(work, 'torch-ops.json'), JSON.stringify(RUN.peers[0]))
    return gather(work, out)
  }

  it('gathers what there is, and says what went wrong', () => {
    const good = run('matmul ok 3\ntorch-ops ok 5\n', RUN.reports[0]!)
    expect(good).toMatchObject({ reports: [RUN.reports[0]], peers: [RUN.peers[0]] })
    expect(good.steps).toHaveLength(2)
    expect(describeFailures(good)).toEqual([])
    expect(formatResults(good)).toContain('0.99')
    const wrong = makeReport('matmul', [makeRow({ wrong: 3 })])
    const bad = run('matmul ok 3\nengine timeout 200\n', wrong)
    expect(describeFailures(bad)).toEqual(['not ok: engine', 'rows with wrong results: 1'])
  })
})
