/**
 * Simulated runs over request rates as one self-contained HTML page: latencies, throughput and goodput
 * as curves, and the figures in a table. Inline SVG, no script, no outside file.
 */

import type { Targets } from './metrics.ts'
import type { Simulation } from './simulate.ts'

export interface RatePoint {
  /** Requests per second. */
  readonly rate: number
  readonly simulation: Simulation
}

export interface SimulationReport {
  /** Model, hardware, layout, trace: a line each. */
  readonly facts: readonly (readonly [name: string, value: string])[]
  readonly targets: Targets
  readonly points: readonly RatePoint[]
  /** Layouts that were compared, best first; empty: one was given. */
  readonly layouts: readonly { readonly name: string; readonly simulation: Simulation }[]
}

interface Curve {
  readonly name: string
  readonly kind: string
  readonly measure: (simulation: Simulation) => number
}

const WIDTH = 480
const HEIGHT = 260
const LEFT = 58
const BOTTOM = 34
const TOP = 14
const RIGHT = 92

const TTFT: readonly Curve[] = [
  { name: 'p50', kind: 'a', measure: ({ metrics }) => metrics.ttftMs.p50 },
  { name: 'p90', kind: 'b', measure: ({ metrics }) => metrics.ttftMs.p90 },
  { name: 'p99', kind: 'c', measure: ({ metrics }) => metrics.ttftMs.p99 },
]
const TPOT: readonly Curve[] = [
  { name: 'p50', kind: 'a', measure: ({ metrics }) => metrics.tpotMs.p50 },
  { name: 'p90', kind: 'b', measure: ({ metrics }) => metrics.tpotMs.p90 },
  { name: 'p99', kind: 'c', measure: ({ metrics }) => metrics.tpotMs.p99 },
]
const THROUGHPUT: readonly Curve[] = [
  { name: 'tokens', kind: 'a', measure: ({ metrics }) => metrics.tokensPerSecondPerDevice },
]
const GOODPUT: readonly Curve[] = [
  { name: 'within targets', kind: 'a', measure: ({ metrics }) => metrics.goodput },
  {
    name: 'finished',
    kind: 'b',
    measure: ({ metrics }) => (1e3 * metrics.requests) / metrics.durationMs,
  },
]

function escapeHtml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}

export function formatShort(value: number): string {
  if (!Number.isFinite(value)) return '–'
  if (value >= 1e4) return `${(value / 1e3).toFixed(0)}k`
  if (value >= 100) return value.toFixed(0)
  return value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

/** 1, 2 or 5 times a power of ten, so that about `count` steps reach `max`. */
function stepOf(max: number, count: number): number {
  const raw = Math.max(max, 1e-9) / count
  const power = 10 ** Math.floor(Math.log10(raw))
  return ([1, 2, 5].find((factor) => factor * power >= raw) ?? 10) * power
}

function drawChart(
  title: string,
  unit: string,
  points: readonly RatePoint[],
  curves: readonly Curve[],
  target?: number,
): string {
  const values = points.flatMap(({ simulation }) =>
    curves.map(({ measure }) => measure(simulation)).filter(Number.isFinite),
  )
  // An overloaded run's latency would flatten all others.
  const median = [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 1
  const top = Math.min(Math.max(...values, target ?? 0), Math.max(20 * median, 2 * (target ?? 0)))
  const step = stepOf(top, 4)
  const max = Math.ceil(top / step) * step
  const maxRate = Math.max(...points.map(({ rate }) => rate))
  const x = (rate: number) => LEFT + (rate / maxRate) * (WIDTH - LEFT - RIGHT)
  const y = (value: number) =>
    HEIGHT - BOTTOM - (Math.min(value, max) / max) * (HEIGHT - BOTTOM - TOP)
  const grid: string[] = []
  for (let value = 0; value <= max * 1.0001; value += step) {
    grid.push(
      `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(value).toFixed(1)}" y2="${y(value).toFixed(1)}"/><text x="${LEFT - 6}" y="${(y(value) + 4).toFixed(1)}" class="tick">${formatShort(value)}</text>`,
    )
  }
  const rateStep = stepOf(maxRate, 4)
  for (let rate = 0; rate <= maxRate * 1.0001; rate += rateStep) {
    grid.push(
      `<text x="${x(rate).toFixed(1)}" y="${HEIGHT - BOTTOM + 16}" class="middle">${formatShort(rate).replace(/\.0+$/, '')}</text>`,
    )
  }
  const ends: number[] = []
  const lines = curves.map(({ name, kind, measure }) => {
    const known = points.filter(({ simulation }) => Number.isFinite(measure(simulation)))
    const path = known.map(
      ({ rate, simulation }) => `${x(rate).toFixed(1)},${y(measure(simulation)).toFixed(1)}`,
    )
    const dots = known.map(
      ({ rate, simulation }) =>
        `<circle class="dot ${kind}" cx="${x(rate).toFixed(1)}" cy="${y(measure(simulation)).toFixed(1)}" r="2.5"><title>${escapeHtml(name)} at ${formatShort(rate)}/s: ${formatShort(measure(simulation))} ${unit}</title></circle>`,
    )
    const last = known.at(-1)
    let place = last === undefined ? TOP : y(measure(last.simulation))
    while (ends.some((end) => Math.abs(end - place) < 13)) place += 13
    ends.push(place)
    return `<polyline class="line ${kind}" points="${path.join(' ')}"/>${dots.join('')}<text x="${WIDTH - RIGHT + 8}" y="${(place + 4).toFixed(1)}" class="curve">${escapeHtml(name)}</text>`
  })
  const limit =
    target === undefined
      ? ''
      : `<line class="target" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(target).toFixed(1)}" y2="${y(target).toFixed(1)}"><title>target ${formatShort(target)} ${unit}</title></line>`
  return `<figure><figcaption>${escapeHtml(title)}, ${unit}</figcaption><svg width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)} over request rate">${grid.join('')}${limit}${lines.join('')}<text x="${(WIDTH - RIGHT + LEFT) / 2}" y="${HEIGHT - 2}" class="middle">requests per second</text></svg></figure>`
}

const COLUMNS: readonly (readonly [string, (simulation: Simulation) => string])[] = [
  ['TTFT p50 ms', ({ metrics }) => formatShort(metrics.ttftMs.p50)],
  ['p99', ({ metrics }) => formatShort(metrics.ttftMs.p99)],
  ['TPOT p50 ms', ({ metrics }) => formatShort(metrics.tpotMs.p50)],
  ['p99', ({ metrics }) => formatShort(metrics.tpotMs.p99)],
  ['within targets', ({ metrics }) => `${(100 * metrics.goodShare).toFixed(1)} %`],
  ['goodput /s', ({ metrics }) => formatShort(metrics.goodput)],
  ['tok/s/device', ({ metrics }) => formatShort(metrics.tokensPerSecondPerDevice)],
  ['of optimal', ({ metrics }) => `${(100 * metrics.ofOptimal).toFixed(1)} %`],
  ['preempted', ({ preemptions }) => String(preemptions)],
]

function table(
  first: string,
  rows: readonly { readonly name: string; readonly simulation: Simulation }[],
): string {
  const head = [first, ...COLUMNS.map(([name]) => name)].map((name) => `<th>${name}</th>`).join('')
  const body = rows
    .map(({ name, simulation }) => {
      const cells = COLUMNS.map(([, cell]) => `<td>${cell(simulation)}</td>`).join('')
      return `<tr><td>${escapeHtml(name)}</td>${cells}</tr>`
    })
    .join('\n')
  return `<table><thead><tr>${head}</tr></thead><tbody>\n${body}\n</tbody></table>`
}

/** The same table as text. */
export function formatSimulations(
  first: string,
  rows: readonly { readonly name: string; readonly simulation: Simulation }[],
): string {
  const cells = [
    [first, ...COLUMNS.map(([name]) => name)],
    ...rows.map(({ name, simulation }) => [name, ...COLUMNS.map(([, cell]) => cell(simulation))]),
  ]
  const widths = cells[0]!.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)))
  const lines = cells.map((row) =>
    row
      .map((cell, column) =>
        column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!),
      )
      .join('  '),
  )
  return `${lines.join('\n')}\n`
}

export function renderSimulation(report: SimulationReport): string {
  const { facts, points, targets, layouts } = report
  const rows = points.map(({ rate, simulation }) => ({ name: formatShort(rate), simulation }))
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nanoweave simulate: ${escapeHtml(facts[0]?.[1] ?? '')}</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; max-width: 1010px }
svg text { font: 12px system-ui, sans-serif; fill: #222 } .tick { text-anchor: end } .middle { text-anchor: middle }
figure { display: inline-block; margin: 0 1rem 1rem 0 } figcaption { font-weight: 600 }
.grid { stroke: #e3e5e9 } .line { fill: none; stroke-width: 2 } .target { stroke: #b00020; stroke-dasharray: 5 4 }
.line.a { stroke: #2f6fde } .line.b { stroke: #e0962b } .line.c { stroke: #6b4bb8 } .dot.a { fill: #2f6fde } .dot.b { fill: #e0962b } .dot.c { fill: #6b4bb8 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: 0.15rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
dt { font-weight: 600; float: left; width: 6rem } dd { margin-left: 6.5rem }
</style>
</head>
<body>
<h1>nanoweave simulate</h1>
<dl>
${facts.map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join('\n')}
</dl>
<p>Predicted on a virtual clock with the engine's scheduler. Dashed: the targets, ${formatShort(targets.ttftMs)} ms to the first token, ${formatShort(targets.tpotMs)} ms per token after it.</p>
${drawChart('Time to first token', 'ms', points, TTFT, targets.ttftMs)}
${drawChart('Time per output token', 'ms', points, TPOT, targets.tpotMs)}
${drawChart('Throughput per device', 'tokens/s', points, THROUGHPUT)}
${drawChart('Requests per second', '1/s', points, GOODPUT)}
<h2>Figures</h2>
${table('requests/s', rows)}
${layouts.length === 0 ? '' : `<h2>Layouts compared</h2>\n${table('layout', layouts)}`}
</body>
</html>
`
}
