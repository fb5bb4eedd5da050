/** A report of `nanoweave bench serve` as one page: figures, percentiles, and the latencies' distributions. */

import { figures, formatValue, LATENCIES, type ServeBenchReport } from './report.ts'

const WIDTH = 640
const HEIGHT = 220
const MARGIN = 48

const escapeHtml = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

/** Share of requests at or below a latency, over the latency in log scale. */
function drawDistribution(title: string, values: readonly number[]): string {
  const sorted = values.filter((value) => value > 0).sort((a, b) => a - b)
  if (sorted.length < 2) return ''
  const low = Math.log10(sorted[0])
  const high = Math.max(low + 0.1, Math.log10(sorted[sorted.length - 1]))
  const x = (value: number) =>
    MARGIN + ((Math.log10(value) - low) / (high - low)) * (WIDTH - 2 * MARGIN)
  const y = (share: number) => HEIGHT - MARGIN / 2 - share * (HEIGHT - MARGIN)
  const points = sorted.map(
    (value, at) => `${x(value).toFixed(1)},${y((at + 1) / sorted.length).toFixed(1)}`,
  )
  const marks = [0.5, 0.9, 0.99].map((share) => {
    const value = sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]
    return `<circle cx="${x(value).toFixed(1)}" cy="${y(share).toFixed(1)}" r="3"/><text x="${(x(value) + 6).toFixed(1)}" y="${(y(share) + 14).toFixed(1)}">p${100 * share}: ${formatValue(value)} ms</text>`
  })
  return `<figure><figcaption>${title}: share of requests by milliseconds (log scale)</figcaption>
<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${title}">
<line x1="${MARGIN}" x2="${WIDTH - MARGIN}" y1="${y(0)}" y2="${y(0)}"/>
<polyline points="${points.join(' ')}"/>
${marks.join('\n')}
<text x="${MARGIN}" y="${HEIGHT - 2}">${formatValue(sorted[0])}</text>
<text x="${WIDTH - MARGIN}" y="${HEIGHT - 2}" text-anchor="end">${formatValue(sorted[sorted.length - 1])}</text>
</svg></figure>`
}

export function renderHtml(report: ServeBenchReport): string {
  const good = report.rows.filter((row) => row.error === null)
  const tpot = good.map((row) => row.tpotMs).filter((value) => value !== null)
  const cells = LATENCIES.map(([name, field]) => {
    const values = report[field]
    const numbers = values === null ? ['–', '–', '–'] : Object.values(values).map(formatValue)
    return `<tr><th>${name}</th>${numbers.map((text) => `<td>${text}</td>`).join('')}</tr>`
  })
  const line = ([name, value]: readonly [string, string]) =>
    `<tr><th>${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`
  const { cpu, nanoweave, commit, date } = report.machine
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nanoweave bench serve</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 44rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th { text-align: left; font-weight: normal }
td, th { padding: .15rem .9rem .15rem 0; vertical-align: top } td { font-variant-numeric: tabular-nums }
figure { margin: 1.5rem 0 } svg { width: 100% } text { font-size: 11px }
polyline { fill: none; stroke: #2563eb; stroke-width: 1.5 } circle { fill: #2563eb }
line { stroke: #999 }
</style>
</head>
<body>
<h1>nanoweave bench serve</h1>
<p>Load from ${escapeHtml(cpu)}, nanoweave ${escapeHtml(nanoweave)} (${escapeHtml(commit ?? 'no checkout')}), ${escapeHtml(date)}.</p>
<table>${figures(report).map(line).join('\n')}</table>
<table><tr><th>ms</th><td>p50</td><td>p90</td><td>p99</td></tr>${cells.join('\n')}</table>
${drawDistribution(
  'TTFT',
  good.map((row) => row.ttftMs),
)}
${drawDistribution('TPOT', tpot)}
${drawDistribution(
  'End to end',
  good.map((row) => row.e2eMs),
)}
<table>${Object.entries(report.options)
    .map(([name, value]) => line([name, String(value)]))
    .join('\n')}</table>
</body>
</html>
`
}
