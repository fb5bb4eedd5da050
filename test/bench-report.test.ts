/** What a bench makes of its samples: summaries, timelines, rooflines, tables, pages. */

import { describe, expect, it } from 'vitest'
import { compareLogits } from '../lib/bench/compare-logits.ts'
import { countWrong as countWrongValues } from '../lib/bench/elements.ts'
import { findSuite, parseSettings, parseSizes, renderHtml } from '../lib/bench/index.ts'
import { type Peaks, parsePeaks } from '../lib/bench/peaks.ts'
import { countWrong, deriveRow, formatNumber, formatReport } from '../lib/bench/report.ts'
import { alternate, quantile, summarize } from '../lib/bench/stats.ts'
import type { BenchReport, BenchRow } from '../lib/bench/suite.ts'
import { decodeMsPerToken, prefillMs } from '../lib/bench/timeline.ts'

const PEAKS: Peaks = {
  threads: 2,
  readBytesPerSecond: { best: 40e9, median: 30e9 },
  copyBytesPerSecond: { best: 20e9, median: 20e9 },
  f32FlopPerSecond: { best: 100e9, median: 90e9 },
  bf16FlopPerSecond: { best: 400e9, median: 390e9 },
  instructionSet: 'avx512',
}

const measured = (name: string, medianUs: number) => ({
  name,
  medianUs,
  p99Us: medianUs,
  minUs: medianUs,
  samples: 1,
})

function makeRow(fields: Partial<BenchRow> = {}): BenchRow {
  return {
    op: 'matmul',
    shape: '1×2×3',
    dtype: 'bf16',
    ranks: 1,
    ours: measured('nanoweave', 1000),
    bytes: 10e6,
    flops: 20e6,
    memoryPeak: 'read',
    computePeak: 'bf16',
    checked: 5,
    wrong: 0,
    ...fields,
  }
}

function makeReport(rows: readonly BenchRow[], peaks?: Peaks): BenchReport {
  return {
    version: 1,
    suite: 'matmul',
    machine: {
      cpu: 'a <fast> one',
      cores: 2,
      clocksMhz: [3000],
      memoryBytes: 8e9,
      os: 'Linux',
      node: 'v20',
      nanoweave: '0.1.0',
      commit: null,
      loadAverage: 0,
      date: '2026-01-01',
    },
    ...(peaks !== undefined && { peaks }),
    options: { threads: 2 },
    rows,
    notes: ['a note'],
    details: {},
  }
}

describe('overlap', () => {
  const gemm = measured('matmuls alone', 600)
  const columns = (row: BenchRow) => formatReport(makeReport([row])).split('\n')

  it('is the share of the serial communication that is not on top of the matmuls', () => {
    const row = makeRow({
      ours: measured('overlapped', 700),
      baseline: measured('serial', 1000),
      gemm,
    })
    const derived = deriveRow(row, undefined)
    expect(derived.effectiveCommunicationUs).toBe(100)
    expect(derived.overlapEfficiency).toBe(0.75)
    expect(columns(row).some((line) => /600 +100 +75%/.test(line))).toBe(true)
  })

  it('has no share without a serial time, or where matmuls take all of it', () => {
    const serial = deriveRow(makeRow({ gemm }), undefined)
    expect(serial.effectiveCommunicationUs).toBe(400)
    expect(serial.overlapEfficiency).toBeUndefined()
    const noise = makeRow({
      ours: measured('overlapped', 590),
      baseline: measured('serial', 600),
      gemm,
    })
    expect(deriveRow(noise, undefined).overlapEfficiency).toBeUndefined()
    expect(columns(noise).some((line) => /600 +−10\.0 +–/.test(line))).toBe(true)
    expect(deriveRow(makeRow(), undefined).effectiveCommunicationUs).toBeUndefined()
  })
})

describe('samples', () => {
  it('are summarised by interpolated quantiles', () => {
    expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5)
    expect(quantile([7], 0.99)).toBe(7)
    expect(summarize([3, 1, 2])).toEqual({ medianUs: 2, p99Us: 2.98, minUs: 1, samples: 3 })
  })

  it('come from sides that take turns, the first one changing', async () => {
    const order: string[] = []
    const side = (name: string) => async () => {
      order.push(name)
      return order.length
    }
    const samples = await alternate(3, [side('a'), side('b')])
    expect(order.join('')).toBe('abbaab')
    expect(samples).toEqual([
      [1, 4, 5],
      [2, 3, 6],
    ])
  })
})

describe('timelines', () => {
  it('prefill ends when the last sequence has its first token', () => {
    expect(prefillMs([[5, 6], [9], [7, 8]])).toBe(9)
  })

  it('decode counts the time in which all sequences decode', () => {
    expect(decodeMsPerToken([[10, 12, 14, 16]])).toBe(2)
    // All run from 20 to 30: the first gives tokens at 22, 24, 30 and the second at 25, 30.
    const first = [10, 15, 20, 22, 24, 30]
    const second = [20, 25, 30, 35]
    expect(decodeMsPerToken([first, second])).toBeCloseTo((10 * 2) / 5)
  })

  it('refuses sequences that never decode together', () => {
    expect(() =>
      decodeMsPerToken([
        [1, 2],
        [5, 6],
      ]),
    ).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
  })
})

describe('logits of two engines', () => {
  const vocab = 8
  const theirs = Float32Array.from({ length: 2 * vocab }, (_, i) => Math.sin(i))

  it('agree within rounding', () => {
    const ours = theirs.map((value, i) => value + (i % 2 === 0 ? 1e-3 : -1e-3))
    const comparison = compareLogits(ours, theirs, vocab)
    expect(comparison).toMatchObject({ positions: 2, sameTop: 2, wrong: 0 })
    expect(comparison.maxAbsoluteError).toBeCloseTo(1e-3, 5)
  })

  it('differ where a clear leader changes', () => {
    const leading = Float32Array.from(theirs)
    leading[1] = 100
    const ours = Float32Array.from(leading)
    ours[3] = 101
    const comparison = compareLogits(ours, leading, vocab)
    expect(comparison).toMatchObject({ sameTop: 1, wrong: 2 })
  })

  it('differ everywhere when they are not of one model, or not numbers', () => {
    const negated = theirs.map((value) => -value)
    expect(compareLogits(negated, theirs, vocab).wrong).toBe(2)
    const broken = Float32Array.from(theirs)
    broken[9] = Number.NaN
    expect(compareLogits(broken, theirs, vocab).wrong).toBe(2)
  })
})

describe('verification of values', () => {
  it('allows rounding and nothing else', () => {
    expect(countWrongValues([1, 2.00001], [1, 2], 'f32')).toBe(0)
    expect(countWrongValues([1, 2.1], [1, 2], 'f32')).toBe(1)
    expect(countWrongValues([1, 2.01], [1, 2], 'bf16')).toBe(0)
    expect(countWrongValues([Number.NaN, 2], [1, 2], 'bf16')).toBe(1)
    expect(countWrongValues([1], [1, 2], 'bf16')).toBeGreaterThan(0)
  })
})

describe('derived figures', () => {
  it('name the ceiling that binds', () => {
    // 10 MB at 40 GB/s take 250 µs; 20 MFLOP at 400 GFLOP/s take 50 µs.
    const memory = deriveRow(makeRow(), PEAKS)
    expect(memory.rate).toEqual({ value: 10, unit: 'GB/s' })
    expect(memory.ofPeak).toBeCloseTo(0.25)
    const compute = deriveRow(makeRow({ flops: 200e6 }), PEAKS)
    expect(compute.rate).toEqual({ value: 0.2, unit: 'TFLOP/s' })
    expect(compute.ofPeak).toBeCloseTo(0.5)
    const noBf16 = deriveRow(makeRow({ flops: 50e6 }), { ...PEAKS, bf16FlopPerSecond: null })
    expect(noBf16.ofPeak).toBeCloseTo(0.5)
  })

  it('compare sides as speed: above 1 we are faster', () => {
    const row = makeRow({ baseline: measured('other', 3000), tokens: 6 })
    expect(deriveRow(row, PEAKS)).toMatchObject({
      ratio: 3,
      tokensPerSecond: 6000,
      baselineTokensPerSecond: 2000,
    })
  })

  it('of collectives and engines on a GPU', () => {
    // 6 tokens in 1 ms are 6,000 a second; 400 GFLOP/s over 2 · 10^6 parameters allow 200,000.
    const engine = makeRow({ tokens: 6, parameters: 1e6, ranks: 2, virtualRanks: true })
    expect(deriveRow(engine, PEAKS).ofComputeBound).toBeCloseTo(0.03)
    const spread = makeRow({ tokens: 6, parameters: 1e6, ranks: 2 })
    expect(deriveRow(spread, PEAKS).ofComputeBound).toBeCloseTo(0.015)
    expect(deriveRow(makeRow({ busBytes: 3e6 }), PEAKS).busRate).toBeCloseTo(3e9)
    const text = formatReport(makeReport([{ ...engine, variant: 'nccl', busBytes: 3e6 }], PEAKS))
    for (const part of ['matmul nccl', '2 virtual', 'bus GB/s', '% of F/2P']) {
      expect(text).toContain(part)
    }
  })

  it('are left out without peaks', () => {
    expect(deriveRow(makeRow(), undefined).ofPeak).toBeUndefined()
  })

  it('print with three digits', () => {
    expect([1234.5, 12.345, 0.012345, 0, undefined].map(formatNumber)).toEqual([
      '1235',
      '12.3',
      '0.0123',
      '0',
      '–',
    ])
  })
})

describe('reports', () => {
  const rows = [makeRow({ baseline: measured('other', 3000) }), makeRow({ wrong: 2 })]

  it('are a header, a table and notes', () => {
    const text = formatReport(makeReport(rows, PEAKS))
    const lines = text.split('\n')
    expect(lines[0]).toContain('nanoweave 0.1.0 bench matmul')
    expect(lines.find((line) => line.startsWith('op '))).toContain('other µs')
    expect(lines.filter((line) => line.startsWith('matmul '))).toHaveLength(2)
    expect(text).toContain('2/5')
    expect(text).toContain('a note')
  })

  it('count wrong results', () => {
    expect(countWrong(makeReport(rows))).toBe(2)
  })

  it('become one page that needs nothing else', () => {
    const page = renderHtml(makeReport(rows, PEAKS))
    expect(page).toContain('a &lt;fast&gt; one')
    expect(page.match(/<rect /g)).toHaveLength(3)
    expect(page).toContain('class="peak"')
    expect(page).not.toMatch(/<script|https?:|src=|@import|<link/)
  })
})

describe('arguments', () => {
  it('are sizes with as many numbers as the suite has names', () => {
    const suite = findSuite('matmul')
    expect(parseSizes('1x2x3,4x5x6', suite)).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ])
    expect(parseSizes(undefined, suite)).toBe(suite.defaultSizes)
    expect(parseSizes(undefined, suite, 'cuda')).toBe(suite.gpuSizes)
    for (const text of ['1x2', '1x2x0', '1x2xa', '1x2x3,', '']) {
      expect(() => parseSizes(text, suite)).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
    }
    expect(() => findSuite('none')).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
  })

  it('are settings of name and value', () => {
    const suite = findSuite('engine')
    expect([...parseSettings(['model=tiny', 'cpuIsa=x=y'], suite)]).toEqual([
      ['model', 'tiny'],
      ['cpuIsa', 'x=y'],
    ])
    for (const pair of ['=1', 'model', 'other=1']) {
      expect(() => parseSettings([pair], suite)).toThrow(
        expect.objectContaining({ code: 'ERR_USAGE' }),
      )
    }
  })

  it('may name a peaks file, which must hold rates', () => {
    expect(parsePeaks(JSON.stringify(PEAKS), 'file')).toEqual(PEAKS)
    for (const text of ['', '{}', '{"threads":2,"readBytesPerSecond":null}']) {
      expect(() => parsePeaks(text, 'file')).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
    }
  })
})
