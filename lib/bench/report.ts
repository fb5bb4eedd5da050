/**
 * A bench report as text: header, table, notes. Every derived figure (ratio, rate, share of peak)
 * is computed here from the rows, for the table and the HTML page alike.
 */

import { type Peaks, rooflineSeconds } from './peaks.ts'
import type { BenchReport, BenchRow, Measured } from './suite.ts'

export interface DerivedRow {
  /** Baseline time over ours: above 1 we are faster. */
  readonly ratio: number | undefined
  /** What the row is bound by: bytes per second or operations per second. */
  readonly rate: { readonly value: number; readonly unit: 'GB/s' | 'TFLOP/s' }
  /** Time at the roofline over our time, 0..1. */
  readonly ofPeak: number | undefined
  readonly baselineOfPeak: number | undefined
  readonly tokensPerSecond: number | undefined
  /** nccl-tests' bus bandwidth, bytes per second. */
  readonly busRate: number | undefined
  /**
   * Tokens per second and GPU over peak FLOP/s / (2 · parameters), the bound of NanoFlow (Zhu et al.,
   * 2024, §3): what is left when nothing but dense arithmetic took time.
   */
  readonly ofComputeBound: number | undefined
  readonly baselineTokensPerSecond: number | undefined
  /** ECT of Flux (https://arxiv.org/abs/2406.06858): time that is not of the matmuls. */
  readonly effectiveCommunicationUs: number | undefined
  /** Of the baseline's ECT, the share that is hidden; negative: the schedule adds to it. */
  readonly overlapEfficiency: number | undefined
}

export function deriveRow(row: BenchRow, peaks: Peaks | undefined): DerivedRow {
  const seconds = row.ours.medianUs / 1e6
  const baselineSeconds = row.baseline === undefined ? undefined : row.baseline.medianUs / 1e6
  const roofline = peaks === undefined ? undefined : rooflineSeconds(row, peaks)
  // Without peaks: a row with more than 10 operations per byte is called compute-bound.
  const memoryBound =
    roofline === undefined ? row.flops < 10 * row.bytes : roofline.bound === 'memory'
  return {
    ratio: baselineSeconds === undefined ? undefined : baselineSeconds / seconds,
    rate: memoryBound
      ? { value: row.bytes / seconds / 1e9, unit: 'GB/s' }
      : { value: row.flops / seconds / 1e12, unit: 'TFLOP/s' },
    ofPeak: roofline === undefined ? undefined : roofline.seconds / seconds,
    baselineOfPeak:
      roofline === undefined || baselineSeconds === undefined
        ? undefined
        : roofline.seconds / baselineSeconds,
    tokensPerSecond: row.tokens === undefined ? undefined : row.tokens / seconds,
    busRate: row.busBytes === undefined ? undefined : row.busBytes / seconds,
    ofComputeBound: shareOfComputeBound(row, peaks),
    baselineTokensPerSecond:
      row.tokens === undefined || baselineSeconds === undefined
        ? undefined
        : row.tokens / baselineSeconds,
    ...deriveOverlap(row),
  }
}

function deriveOverlap({ ours, baseline, gemm }: BenchRow) {
  const communicationOf = (time: Measured | undefined) =>
    time === undefined || gemm === undefined ? undefined : time.medianUs - gemm.medianUs
  const effectiveCommunicationUs = communicationOf(ours)
  const serial = communicationOf(baseline)
  // Matmuls in the noise of the whole: there is nothing to hide.
  const isMeasured = effectiveCommunicationUs !== undefined && serial !== undefined && serial > 0
  return {
    effectiveCommunicationUs,
    overlapEfficiency: isMeasured ? 1 - effectiveCommunicationUs / serial : undefined,
  }
}

/** All GPUs of a run are alike; virtual ranks are one GPU. */
function shareOfComputeBound(row: BenchRow, peaks: Peaks | undefined): number | undefined {
  const peak = peaks?.bf16FlopPerSecond
  if (row.parameters === undefined || row.tokens === undefined || !peak) return undefined
  const gpus = row.virtualRanks === true ? 1 : row.ranks
  const tokensPerSecond = row.tokens / (row.ours.medianUs / 1e6) / gpus
  return (tokensPerSecond * 2 * row.parameters) / peak.best
}

/** Three significant digits, no exponent: 1234, 12.3, 0.0123. */
export function formatNumber(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return '–'
  if (value === 0) return '0'
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))))
  return value.toFixed(Math.min(digits, 6))
}

/** A difference of two times may be below zero. */
function formatSigned(value: number | undefined): string {
  return value !== undefined && value < 0 ? `−${formatNumber(-value)}` : formatNumber(value)
}

export function formatPercent(share: number | undefined): string {
  return share === undefined ? '–' : `${(share * 100).toFixed(0)}%`
}

const GIGA = 1e9

export function headerLines(report: BenchReport): string[] {
  const { machine, peaks, options } = report
  const gpu =
    machine.gpu == null
      ? []
      : [
          `${machine.gpu.name}, driver ${machine.gpu.driver}, SM ${machine.gpu.clocksMhz.sm} of ${machine.gpu.clocksMhz.maxSm} MHz and memory ${machine.gpu.clocksMhz.memory} MHz at the start, limit ${machine.gpu.powerLimitWatts} W`,
        ]
  const lines = [
    `nanoweave ${machine.nanoweave} bench ${report.suite}  commit ${machine.commit ?? 'unknown'}  ${machine.date}`,
    `${machine.cpu}, ${machine.cores} cores at ${machine.clocksMhz[0] ?? 0} MHz, ${(machine.memoryBytes / GIGA).toFixed(0)} GB, ${machine.os}, Node ${machine.node}, load ${machine.loadAverage.toFixed(2)}`,
    ...gpu,
    Object.entries(options)
      .map(([name, value]) => `${name} ${String(value)}`)
      .join('  '),
  ]
  if (peaks !== undefined) {
    lines.push(
      `peak of ${peaks.device ?? `${peaks.threads} threads`}: read ${formatNumber(peaks.readBytesPerSecond.best / GIGA)} GB/s, copy ${formatNumber(peaks.copyBytesPerSecond.best / GIGA)} GB/s, f32 ${formatNumber((peaks.f32FlopPerSecond?.best ?? Number.NaN) / GIGA)} GFLOP/s, bf16 ${formatNumber((peaks.bf16FlopPerSecond?.best ?? Number.NaN) / GIGA)} GFLOP/s`,
    )
  } else {
    lines.push('no peaks file: "% of peak" is empty (docs/benchmarks.md says how to make one)')
  }
  return lines
}

export interface Column {
  readonly title: string
  readonly left: boolean
  cell(row: BenchRow, derived: DerivedRow): string
}

/** Columns that have something to say for these rows. */
export function tableColumns(rows: readonly BenchRow[]): Column[] {
  const left = (title: string, cell: Column['cell']): Column => ({ title, left: true, cell })
  const right = (title: string, cell: Column['cell']): Column => ({ title, left: false, cell })
  const baselineName = rows.find((row) => row.baseline !== undefined)?.baseline?.name
  const columns = [
    left('op', (row) => (row.variant === undefined ? row.op : `${row.op} ${row.variant}`)),
    left('shape', (row) => row.shape),
    left('dtype', (row) => row.dtype),
    right('ranks', (row) => (row.virtualRanks ? `${row.ranks} virtual` : String(row.ranks))),
    right('ours µs', (row) => formatNumber(row.ours.medianUs)),
    right('p99', (row) => formatNumber(row.ours.p99Us)),
  ]
  if (baselineName !== undefined) {
    columns.push(
      right(`${baselineName} µs`, (row) => formatNumber(row.baseline?.medianUs)),
      right('p99', (row) => formatNumber(row.baseline?.p99Us)),
      right('×', (_row, derived) => derived.ratio?.toFixed(2) ?? '–'),
    )
  }
  if (rows.some((row) => row.gemm !== undefined)) {
    columns.push(
      right('T_gemm µs', (row) => formatNumber(row.gemm?.medianUs)),
      right('ECT µs', (_row, derived) => formatSigned(derived.effectiveCommunicationUs)),
      right('E', (_row, derived) => formatPercent(derived.overlapEfficiency)),
    )
  }
  if (rows.some((row) => row.tokens !== undefined)) {
    columns.push(right('tok/s', (_row, derived) => formatNumber(derived.tokensPerSecond)))
    if (baselineName !== undefined) {
      columns.push(
        right(`${baselineName} tok/s`, (_row, derived) =>
          formatNumber(derived.baselineTokensPerSecond),
        ),
      )
    }
  }
  if (rows.some((row) => row.busBytes !== undefined)) {
    columns.push(
      right('bus GB/s', (_row, derived) =>
        formatNumber(derived.busRate === undefined ? undefined : derived.busRate / GIGA),
      ),
    )
  }
  if (rows.some((row) => row.parameters !== undefined)) {
    columns.push(right('% of F/2P', (_row, derived) => formatPercent(derived.ofComputeBound)))
  }
  columns.push(
    right('rate', (_row, derived) => `${formatNumber(derived.rate.value)} ${derived.rate.unit}`),
    right('% of peak', (_row, derived) => formatPercent(derived.ofPeak)),
    right('#wrong', (row) => `${row.wrong}/${row.checked}`),
  )
  return columns
}

export function formatReport(report: BenchReport): string {
  const columns = tableColumns(report.rows)
  const cells = report.rows.map((row) => {
    const derived = deriveRow(row, report.peaks)
    return columns.map((column) => column.cell(row, derived))
  })
  const widths = columns.map((column, index) =>
    Math.max(column.title.length, ...cells.map((line) => line[index]!.length)),
  )
  const pad = (text: string, index: number) =>
    columns[index]!.left ? text.padEnd(widths[index]!) : text.padStart(widths[index]!)
  const line = (texts: readonly string[]) => texts.map(pad).join('  ').trimEnd()
  return [
    ...headerLines(report),
    '',
    line(columns.map((column) => column.title)),
    ...cells.map(line),
    ...(report.notes.length === 0 ? [] : ['', ...report.notes]),
    '',
  ].join('\n')
}

export function countWrong(report: BenchReport): number {
  return report.rows.reduce((sum, row) => sum + row.wrong, 0)
}
