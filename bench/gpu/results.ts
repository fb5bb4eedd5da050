/**
 * What one or several GPU runs came to: every row of every bench suite with its baselines, the facts,
 * the ceilings, the tests, and how the targets fared. Pure: collect.ts and record-gpu.ts read and
 * write the files.
 */

import type { Gpu } from '../../lib/bench/machine.ts'
import type { Peaks } from '../../lib/bench/peaks.ts'
import { deriveRow, formatNumber, formatPercent } from '../../lib/bench/report.ts'
import type { BenchReport, BenchRow } from '../../lib/bench/suite.ts'

export interface StepOutcome {
  readonly name: string
  /** `ok`, `timeout`, `skipped`, `failed(STATUS)`. */
  readonly state: string
  readonly seconds: number
}

/** One row of bench/peers/torch_baselines.py. */
export interface PeerRow {
  readonly op: string
  readonly shape: string
  readonly dtype: string
  readonly medianUs: number
}

export interface PeerReport {
  readonly what: string
  readonly versions: Readonly<Record<string, string | null>>
  readonly rows: readonly PeerRow[]
  readonly failures: readonly Readonly<Record<string, unknown>>[]
}

export interface TestTotals {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  readonly notRun: number
}

export interface GpuResults {
  readonly version: 1
  readonly device: string
  readonly gpu: Gpu | null
  readonly commit: string
  readonly date: string
  readonly versions: Readonly<Record<string, string | null>>
  readonly steps: readonly StepOutcome[]
  readonly tests?: TestTotals
  readonly facts?: unknown
  readonly nccl?: unknown
  readonly interference?: unknown
  readonly peaks?: Peaks
  readonly reports: readonly BenchReport[]
  readonly peers: readonly PeerReport[]
}

/** A row with everything said about it. */
export interface ResultRow {
  readonly suite: string
  readonly row: BenchRow
  readonly peer?: { readonly name: string; readonly medianUs: number; readonly ratio: number }
  /** Time at the ceiling over ours, 0..1. */
  readonly ofPeak?: number
  readonly ofComputeBound?: number
}

/** Ours call a decode row `1×128+64`, prompt and output; a peer names the prompt alone. */
function isSameCase(row: BenchRow, peer: PeerRow): boolean {
  if (row.op !== peer.op || row.dtype !== peer.dtype) return false
  return row.shape === peer.shape || (row.op === 'decode' && row.shape.startsWith(`${peer.shape}+`))
}

export function resultRows({ reports, peers, peaks }: GpuResults): ResultRow[] {
  return reports.flatMap(({ suite, rows }) =>
    rows.map((row): ResultRow => {
      const derived = deriveRow(row, peaks)
      const report = peers.find((one) => one.rows.some((peer) => isSameCase(row, peer)))
      const peer = report?.rows.find((candidate) => isSameCase(row, candidate))
      const name = report?.what === 'engine' ? 'transformers' : 'PyTorch'
      return {
        suite,
        row,
        ...(peer !== undefined && {
          peer: { name, medianUs: peer.medianUs, ratio: peer.medianUs / row.ours.medianUs },
        }),
        ...(derived.ofPeak !== undefined && { ofPeak: derived.ofPeak }),
        ...(derived.ofComputeBound !== undefined && { ofComputeBound: derived.ofComputeBound }),
      }
    }),
  )
}

/** A run's steps, reports and peers beside those of an earlier one; the later of the same counts. */
function mergeTwo(earlier: GpuResults, run: GpuResults): GpuResults {
  if (run.device !== earlier.device || run.commit !== earlier.commit) {
    throw new Error(
      `runs of ${earlier.device} at ${earlier.commit} and ${run.device} at ${run.commit} are no one result`,
    )
  }
  const keyOf = ({ suite, options }: BenchReport) => `${suite} ${String(options.ranks)}`
  const without = <Item>(old: readonly Item[], now: readonly Item[], key: (item: Item) => string) =>
    old.filter((item) => !now.some((other) => key(other) === key(item)))
  return {
    ...earlier,
    ...run,
    versions: { ...earlier.versions, ...run.versions },
    steps: [...without(earlier.steps, run.steps, (step) => step.name), ...run.steps],
    reports: [...without(earlier.reports, run.reports, keyOf), ...run.reports],
    peers: [...without(earlier.peers, run.peers, (peer) => peer.what), ...run.peers],
  }
}

/** Runs one after another on one device at one commit. */
export function mergeResults(runs: readonly GpuResults[]): GpuResults {
  let merged = runs[0]
  if (merged === undefined) throw new Error('no results to merge')
  for (const run of runs.slice(1)) merged = mergeTwo(merged, run)
  return merged
}

export interface Target {
  readonly name: string
  readonly bar: string
  /** Undefined: not measured. */
  readonly measured?: string
  readonly isMet?: boolean
}

interface Figure {
  readonly name: string
  /** At least this much. */
  readonly bar: number
  readonly unit: '%' | '×'
  /** The worst of these counts. */
  readonly values: readonly (number | undefined)[]
}

function judge({ name, bar, unit, values }: Figure): Target {
  const format = (value: number) => (unit === '%' ? formatPercent(value) : `${value.toFixed(2)}×`)
  const known = values.filter((value) => value !== undefined && Number.isFinite(value)) as number[]
  const target = { name, bar: `≥ ${format(bar)}` }
  if (known.length === 0) return target
  const worst = Math.min(...known)
  return { ...target, measured: format(worst), isMet: worst >= bar }
}

/** The figures that the CUDA backend is held to, from the rows of a run. */
export function judgeTargets(results: GpuResults): Target[] {
  const rows = resultRows(results).filter(({ row }) => row.variant === undefined)
  const of = (suite: string, test: (row: BenchRow) => boolean) =>
    rows.filter((one) => one.suite === suite && test(one.row))
  const copy = results.peaks?.copyBytesPerSecond.best
  const shareOfCopy = ({ row }: ResultRow) =>
    copy === undefined ? undefined : row.bytes / (row.ours.medianUs / 1e6) / copy
  const fused = of('all-reduce-rms-norm', (row) => row.ranks === 4 && row.shape === '4096×8192')
  const decodeShapes = /^(1|8|64|256)×(6144|4096|28672|128256)×(4096|14336)$/
  const products = of(
    'matmul',
    ({ shape }) => shape === '4096×4096×4096' || decodeShapes.test(shape),
  )
  const single = of('engine', (row) => row.op === 'decode' && row.shape.startsWith('1×128+'))
  const figures: Figure[] = [
    {
      name: 'decode attention, 32 × 8192, of the copy bandwidth',
      bar: 0.85,
      unit: '%',
      values: of('attention-decode', (row) => row.shape === '32×8192').map(shareOfCopy),
    },
    {
      name: 'prefill attention against PyTorch, from 4096 tokens, worst',
      bar: 0.8,
      unit: '×',
      values: of('attention-prefill', (row) => Number(row.shape) >= 4096).map((r) => r.peer?.ratio),
    },
    {
      name: 'matmul against PyTorch, 4096³ and decode shapes, worst',
      bar: 0.97,
      unit: '×',
      values: products.map((r) => r.peer?.ratio),
    },
    {
      name: 'all_reduce_rms_norm, 4 virtual ranks, of its bandwidth bound',
      bar: 0.8,
      unit: '%',
      values: fused.map((r) => r.ofPeak),
    },
    {
      name: 'all_reduce_rms_norm, 4 virtual ranks, against the unfused sequence',
      bar: 1.5,
      unit: '×',
      values: fused.map(({ row }) =>
        row.baseline === undefined ? undefined : row.baseline.medianUs / row.ours.medianUs,
      ),
    },
    {
      name: '8 B model, batch 1, of the weight-streaming bound',
      bar: 0.8,
      unit: '%',
      values: single.map((r) => r.ofPeak),
    },
    {
      name: '8 B model, batch 1, against transformers (static cache, torch.compile)',
      bar: 1,
      unit: '×',
      values: single.map((r) => r.peer?.ratio),
    },
  ]
  return figures.map(judge)
}

export function countWrongRows(results: GpuResults): number {
  return resultRows(results).filter(({ row }) => row.wrong > 0).length
}

const HEADERS = ['op', 'shape', 'ranks', 'ours µs', 'baseline µs', '×', '% of peak', '#wrong']

function cellsOf({ row, peer, ofPeak }: ResultRow): string[] {
  const baseline = peer ?? row.baseline
  const ratio = baseline === undefined ? undefined : baseline.medianUs / row.ours.medianUs
  return [
    row.variant === undefined ? row.op : `${row.op} ${row.variant}`,
    row.shape,
    row.virtualRanks ? `${row.ranks} virtual` : String(row.ranks),
    formatNumber(row.ours.medianUs),
    baseline === undefined ? '–' : `${formatNumber(baseline.medianUs)} ${baseline.name}`,
    ratio === undefined ? '–' : ratio.toFixed(2),
    formatPercent(ofPeak),
    `${row.wrong}/${row.checked}`,
  ]
}

function outcomeText({ measured, isMet }: Target): string {
  return measured === undefined ? 'not measured' : `${measured} ${isMet ? '(met)' : '(missed)'}`
}

/** For a terminal: steps, rows of the op itself, targets. */
export function formatResults(results: GpuResults): string {
  const rows = resultRows(results).filter(({ row }) => row.variant === undefined)
  const lines = [HEADERS, ...rows.map(cellsOf)]
  const widths = HEADERS.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)))
  const table = lines.map((line) =>
    line
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  )
  const { tests, steps, device, gpu, commit } = results
  return [
    `${device}, driver ${gpu?.driver ?? 'unknown'}, commit ${commit}`,
    steps.map(({ name, state, seconds }) => `${name} ${state} ${seconds} s`).join('; '),
    tests === undefined
      ? 'tests: not run'
      : `tests: ${tests.passed} passed, ${tests.failed} failed, ${tests.skipped} skipped, ${tests.notRun} not run`,
    '',
    ...table,
    '',
    ...judgeTargets(results).map((one) => `${one.name}: ${outcomeText(one)}, bar ${one.bar}`),
    '',
  ].join('\n')
}

/** For docs/benchmarks.md and README.md. */
export function renderResults(results: GpuResults): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  const { device, gpu, commit, date, tests, peaks, versions } = results
  const rate = (value: number | undefined) => formatNumber(value)
  const known = Object.entries(versions).filter(([, version]) => version !== null)
  return [
    `> ${device}, driver ${gpu?.driver ?? 'unknown'}, commit ${commit}, ${date}  `,
    `> ${known.map(([name, version]) => `${name} ${version}`).join(', ')}  `,
    ...(peaks === undefined
      ? []
      : [
          `> measured ceilings: copy ${rate(peaks.copyBytesPerSecond.best / 1e12)} TB/s, read ${rate(peaks.readBytesPerSecond.best / 1e12)} TB/s, bf16 ${rate((peaks.bf16FlopPerSecond?.best ?? Number.NaN) / 1e12)} TFLOP/s  `,
        ]),
    ...(tests === undefined
      ? []
      : [`> tests: ${tests.passed} passed, ${tests.failed} failed, ${tests.skipped} skipped  `]),
    '',
    line(['target', 'bar', 'measured']),
    line([':--', '--:', '--:']),
    ...judgeTargets(results).map((one) => line([one.name, one.bar, outcomeText(one)])),
    '',
    line(HEADERS),
    line([':--', ':--', ...HEADERS.slice(2).map(() => '--:')]),
    ...resultRows(results).map((row) => line(cellsOf(row))),
    '',
  ].join('\n')
}

/** `h200` of `NVIDIA H200`: what a results file is called. */
export function deviceSlug(device: string): string {
  const word = device.replace(/^NVIDIA\s+/i, '').split(/\s+/)[0] ?? device
  return word.toLowerCase().replace(/[^a-z0-9]+/g, '-')
}
