/**
 * The tables of docs/benchmarks.md, out of a results file:
 *
 *   npx tsx bench/table.ts bench/results/cpu.json docs/benchmarks.md
 *
 * replaces what stands between the two `results` comments of the page. test/bench-docs.test.ts
 * fails when the page says anything but what was measured.
 */

import { readFileSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import type { BenchReport } from '../lib/bench/index.ts'
import { deriveRow, headerLines, tableColumns } from '../lib/bench/report.ts'

const BEGIN = '<!-- results: written by bench/table.ts -->'
const END = '<!-- end of results -->'

/** One heading, header, table and notes per report, as Markdown. */
export function renderTables(reports: readonly BenchReport[]): string {
  return reports
    .map((report) => {
      const ranks = report.options.ranks === 1 ? '' : `, ${String(report.options.ranks)} ranks`
      const columns = tableColumns(report.rows)
      const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
      return [
        `### ${report.suite}${ranks}`,
        '',
        ...headerLines(report).map((text) => `> ${text}  `),
        '',
        line(columns.map((column) => column.title)),
        line(columns.map((column) => (column.left ? ':--' : '--:'))),
        ...report.rows.map((row) => {
          const derived = deriveRow(row, report.peaks)
          return line(columns.map((column) => column.cell(row, derived)))
        }),
        '',
        ...report.notes.map((note) => `- ${note}`),
        '',
      ].join('\n')
    })
    .join('\n')
}

/** The page with its results replaced; undefined when it has no place for them. */
export function replaceTables(page: string, reports: readonly BenchReport[]): string | undefined {
  const begin = page.indexOf(BEGIN)
  const end = page.indexOf(END)
  if (begin < 0 || end < begin) return undefined
  return `${page.slice(0, begin + BEGIN.length)}\n\n${renderTables(reports)}\n${page.slice(end)}`
}

const [, script, resultsFile, pageFile] = process.argv
if (script !== undefined && import.meta.url === pathToFileURL(script).href) {
  if (resultsFile === undefined || pageFile === undefined) {
    process.stderr.write('usage: npx tsx bench/table.ts RESULTS.json PAGE.md\n')
    process.exit(2)
  }
  const { reports } = JSON.parse(readFileSync(resultsFile, 'utf8'))
  const page = replaceTables(readFileSync(pageFile, 'utf8'), reports)
  if (page === undefined) {
    process.stderr.write(`${pageFile} has no place for results: ${BEGIN} … ${END}\n`)
    process.exit(1)
  }
  writeFileSync(pageFile, page)
}
