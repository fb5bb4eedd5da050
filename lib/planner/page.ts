/**
 * A plan as one self-contained HTML page: what was decided, and a layer's timeline under the serial
 * and the overlapped schedule on one scale, lanes below each other, bubbles hatched, the critical
 * path outlined. Inline SVG, no script, no outside file.
 */

import { LANES, type Lane } from '../program/types.ts'
import type { LayerTimeline, PlanReport } from './report.ts'
import type { TimedOp } from './timeline.ts'

const WIDTH = 1000
const LABEL_WIDTH = 84
const LANE_HEIGHT = 34
const LANE_GAP = 6
/** Boxes narrower than this have no name; the tooltip has it. */
const MIN_NAMED = 38
const CHARACTER_WIDTH = 6.4

export function escapeHtml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
}

function formatMicroseconds(seconds: number): string {
  const value = 1e6 * seconds
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} µs`
}

function formatMilliseconds(seconds: number): string {
  return `${(1e3 * seconds).toFixed(2)} ms`
}

/** `layers.3.gate_up#1` → `gate_up·1`. */
function shortName({ label, part }: TimedOp): string {
  const base = label
    .replace(/#\d+$/, '')
    .split('.')
    .filter((word) => !/^(layers|\d+)$/.test(word))
  return part === undefined ? base.join('.') : `${base.join('.')}·${part}`
}

function drawOp(op: TimedOp, y: number, pixelsPerSecond: number): string {
  const x = LABEL_WIDTH + op.startSeconds * pixelsPerSecond
  const width = Math.max(0.7, (op.endSeconds - op.startSeconds) * pixelsPerSecond)
  const slowdown = op.soloSeconds > 0 ? (op.endSeconds - op.startSeconds) / op.soloSeconds : 1
  const title = `${op.label}: ${formatMicroseconds(op.endSeconds - op.startSeconds)}, alone ${formatMicroseconds(op.soloSeconds)} (×${slowdown.toFixed(2)})`
  const name = shortName(op)
  const isNamed = width >= MIN_NAMED && name.length * CHARACTER_WIDTH < width
  const text = isNamed
    ? `<text x="${(x + width / 2).toFixed(1)}" y="${y + LANE_HEIGHT / 2 + 4}" class="name">${escapeHtml(name)}</text>`
    : ''
  const kind = op.isCritical ? `part${op.part ?? 0} critical` : `part${op.part ?? 0}`
  return `<g><title>${escapeHtml(title)}</title><rect class="${op.lane} ${kind}" x="${x.toFixed(1)}" y="${y}" width="${width.toFixed(1)}" height="${LANE_HEIGHT}"/>${text}</g>`
}

function drawTimeline(timeline: LayerTimeline, scaleSeconds: number): string {
  const pixelsPerSecond = (WIDTH - LABEL_WIDTH) / scaleSeconds
  const lanes = LANES.filter((lane) => timeline.ops.some((op) => op.lane === lane))
  const height = lanes.length * (LANE_HEIGHT + LANE_GAP) + 22
  const rows = lanes.map((lane, index) => {
    const y = index * (LANE_HEIGHT + LANE_GAP)
    const ops = timeline.ops.filter((op) => op.lane === lane)
    return [
      `<text x="0" y="${y + LANE_HEIGHT / 2 + 4}">${lane}</text>`,
      `<rect class="idle" x="${LABEL_WIDTH}" y="${y}" width="${(timeline.seconds * pixelsPerSecond).toFixed(1)}" height="${LANE_HEIGHT}"/>`,
      ...ops.map((op) => drawOp(op, y, pixelsPerSecond)),
    ].join('')
  })
  const end = LABEL_WIDTH + timeline.seconds * pixelsPerSecond
  return [
    `<svg width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="timeline: ${escapeHtml(timeline.description)}">`,
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="6" class="hatch"/></pattern></defs>',
    ...rows,
    `<text x="${end.toFixed(1)}" y="${height - 4}" class="end">${formatMicroseconds(timeline.seconds)}</text>`,
    '</svg>',
  ].join('\n')
}

function idleText({ idleSeconds, seconds, ops }: LayerTimeline): string {
  const lanes = LANES.filter((lane) => ops.some((op) => op.lane === lane))
  return lanes
    .map((lane: Lane) => `${lane} idle ${((100 * idleSeconds[lane]) / seconds).toFixed(0)} %`)
    .join(', ')
}

function section(title: string, timeline: LayerTimeline, scaleSeconds: number): string {
  return `<section>
<h2>${escapeHtml(title)}: step ${formatMilliseconds(timeline.stepSeconds)}</h2>
<p>${escapeHtml(timeline.description)}. ${idleText(timeline)}.</p>
${drawTimeline(timeline, scaleSeconds)}
</section>`
}

interface KindRow {
  readonly name: string
  readonly serial: number
  readonly overlapped: number
}

/** Time alone on the device, by op, of the layers drawn. */
function kindRows(report: PlanReport): KindRow[] {
  const rows = new Map<string, { serial: number; overlapped: number }>()
  const add = (timeline: LayerTimeline | undefined, side: 'serial' | 'overlapped') => {
    for (const op of timeline?.ops ?? []) {
      const name = shortName(op).replace(/·\d+$/, '')
      const row = rows.get(name) ?? { serial: 0, overlapped: 0 }
      row[side] += op.endSeconds - op.startSeconds
      rows.set(name, row)
    }
  }
  add(report.serial, 'serial')
  add(report.overlapped, 'overlapped')
  return [...rows].map(([name, row]) => ({ name, ...row }))
}

function decisionText({ decision }: PlanReport): string {
  const gain = `${(100 * decision.gain).toFixed(1)} %`
  if (decision.refusal !== undefined) return `Serial: ${decision.refusal}.`
  return `Overlapped: predicted ${gain} faster than the serial schedule.`
}

/** Measured times of whole steps, where somebody ran them. */
export interface MeasuredStep {
  readonly name: string
  readonly seconds: number
}

export function renderPlan(report: PlanReport, measured: readonly MeasuredStep[] = []): string {
  const { serial, overlapped } = report
  const scale = Math.max(serial.seconds, overlapped?.seconds ?? 0)
  const head = `${report.model} on ${report.ranks} × ${report.hardware}`
  const rows = kindRows(report)
    .map(
      ({ name, serial: before, overlapped: after }) =>
        `<tr><td>${escapeHtml(name)}</td><td>${formatMicroseconds(before)}</td><td>${overlapped === undefined ? '–' : formatMicroseconds(after)}</td></tr>`,
    )
    .join('\n')
  const measurements = measured
    .map(
      ({ name, seconds }) =>
        `<p>Measured, ${escapeHtml(name)}: ${formatMilliseconds(seconds)}.</p>`,
    )
    .join('\n')
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nanoweave plan: ${escapeHtml(head)}</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; max-width: ${WIDTH}px }
svg text { font: 12px system-ui, sans-serif; fill: #222 } svg .name { text-anchor: middle; font-size: 11px } svg .end { text-anchor: end }
.compute { fill: #86aeec } .compute.part1 { fill: #adc9f4 } .compute.part2 { fill: #c8dbf8 } .compute.part3 { fill: #dfeafb }
.memory { fill: #f0c870 } .memory.part1 { fill: #f6dba1 } .memory.part2 { fill: #f9e6c0 } .memory.part3 { fill: #fcf0da }
.network { fill: #8fcb96 } .network.part1 { fill: #b3dcb8 } .network.part2 { fill: #cde8d0 } .network.part3 { fill: #e1f2e3 }
svg rect { stroke: #fff; stroke-width: 0.5 } svg rect.critical { stroke: #b00020; stroke-width: 1.5 }
.idle { fill: url(#hatch) } .hatch { stroke: #d8dbe0; stroke-width: 2 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: 0.15rem 0.8rem; text-align: right; border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
</style>
</head>
<body>
<h1>${escapeHtml(head)}</h1>
<p>${report.numTokens} tokens of ${report.numSeqs} sequences, ${report.numLayers} layers; the picture is one layer of every rank, predicted. Hatched: a lane has nothing to run. Red: the chain that decides how long the step takes.</p>
<p><strong>${escapeHtml(decisionText(report))}</strong></p>
${measurements}
${section('Serial', serial, scale)}
${overlapped === undefined ? '' : section(report.decision.refusal === undefined ? 'Overlapped, chosen' : 'Overlapped, refused', overlapped, scale)}
<h2>Time of the ops drawn</h2>
<table>
<thead><tr><th>op</th><th>serial</th><th>overlapped</th></tr></thead>
<tbody>
${rows}
</tbody>
</table>
<h2>Where the rates come from</h2>
<ul>
${report.sources.map((source) => `<li>${escapeHtml(source)}</li>`).join('\n')}
</ul>
</body>
</html>
`
}
