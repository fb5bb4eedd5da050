/**
 * A bench report as one self-contained HTML page: header, a bar per row (ours and the baseline as
 * shares of the longer of the two), the table, the notes. Inline SVG, no script, no outside file.
 */

import { type DerivedRow, deriveRow, formatNumber, headerLines, tableColumns } from './report.ts'
import type { BenchReport, BenchRow } from './suite.ts'

const BAR_WIDTH = 420
const LABEL_WIDTH = 300
const ROW_HEIGHT = 38
const BAR_HEIGHT = 13

function escapeHtml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
}

function bar(y: number, share: number, kind: 'ours' | 'base', label: string): string {
  const width = Math.max(1, share * BAR_WIDTH)
  return [
    `<rect class="${kind}" x="${LABEL_WIDTH}" y="${y}" width="${width.toFixed(1)}" height="${BAR_HEIGHT}"/>`,
    `<text x="${(LABEL_WIDTH + width + 6).toFixed(1)}" y="${y + BAR_HEIGHT - 2}">${escapeHtml(label)}</text>`,
  ].join('')
}

/** Speed bars: the length is the speed relative to the faster side; the tick is the roofline. */
function drawRow(row: BenchRow, derived: DerivedRow, index: number): string {
  const y = index * ROW_HEIGHT
  const ourSpeed = 1 / row.ours.medianUs
  const baseSpeed = row.baseline === undefined ? 0 : 1 / row.baseline.medianUs
  // With a known roofline bars are shares of it, else of the faster side.
  const full =
    derived.ofPeak === undefined ? Math.max(ourSpeed, baseSpeed) : ourSpeed / derived.ofPeak
  const share = (speed: number) => Math.min(1, speed / full)
  const parts = [
    `<text x="0" y="${y + BAR_HEIGHT}">${escapeHtml(`${row.op} ${row.variant ?? ''} ${row.shape} ${row.dtype}`)}</text>`,
    bar(y + 2, share(ourSpeed), 'ours', `${formatNumber(row.ours.medianUs)} µs`),
  ]
  if (row.baseline !== undefined) {
    const label = `${row.baseline.name} ${formatNumber(row.baseline.medianUs)} µs`
    parts.push(bar(y + 4 + BAR_HEIGHT, share(baseSpeed), 'base', label))
  }
  if (derived.ofPeak !== undefined) {
    const x = LABEL_WIDTH + BAR_WIDTH
    parts.push(`<line class="peak" x1="${x}" x2="${x}" y1="${y}" y2="${y + ROW_HEIGHT - 4}"/>`)
  }
  return parts.join('')
}

export function renderHtml(report: BenchReport): string {
  const derived = report.rows.map((row) => deriveRow(row, report.peaks))
  const columns = tableColumns(report.rows)
  const height = report.rows.length * ROW_HEIGHT
  const width = LABEL_WIDTH + BAR_WIDTH + 220
  const bars = report.rows.map((row, index) => drawRow(row, derived[index]!, index)).join('\n')
  const head = columns.map((column) => `<th>${escapeHtml(column.title)}</th>`).join('')
  const body = report.rows
    .map((row, index) => {
      const cells = columns.map((column) => {
        const text = escapeHtml(column.cell(row, derived[index]!))
        return `<td${column.left ? ' class="left"' : ''}>${text}</td>`
      })
      return `<tr${row.wrong > 0 ? ' class="wrong"' : ''}>${cells.join('')}</tr>`
    })
    .join('\n')
  const scale =
    report.peaks === undefined
      ? 'Bars: speed relative to the faster side.'
      : 'Bars: speed as a share of the roofline (the line at the right).'
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nanoweave bench ${escapeHtml(report.suite)}</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
svg text { font: 12px system-ui, sans-serif; fill: #222 }
.ours { fill: #2f6fde } .base { fill: #b8bec8 } .peak { stroke: #d04a3a; stroke-width: 1.5 }
table { border-collapse: collapse; margin-top: 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd } .left { text-align: left }
.wrong td { color: #b00020; font-weight: 600 }
pre { white-space: pre-wrap }
</style>
</head>
<body>
<h1>nanoweave bench ${escapeHtml(report.suite)}</h1>
<pre>${headerLines(report).map(escapeHtml).join('\n')}</pre>
<p>${scale}</p>
<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="speed of each row">
${bars}
</svg>
<table>
<thead><tr>${head}</tr></thead>
<tbody>
${body}
</tbody>
</table>
${report.notes.map((note) => `<p>${escapeHtml(note)}</p>`).join('\n')}
</body>
</html>
`
}
