/**
 * Takes the results of one or several GPU runs (scripts/gpu-run.sh) of one commit into
 * bench/results/NAME.json and the pages that quote them:
 *
 *   npx tsx bench/record-gpu.ts RUN.json [RUN.json …]
 *
 * NAME is the device's (h200). docs/benchmarks.md gets every row, between its `gpu results` comments.
 * Refuses results with wrong rows or failed tests, and those of no GPU.
 */

import { readFileSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import {
  countWrongRows,
  deviceSlug,
  type GpuResults,
  mergeResults,
  renderResults,
} from './gpu/results.ts'

const PAGE = 'docs/benchmarks.md'
const BEGIN = '<!-- gpu results: written by bench/record-gpu.ts -->'
const END = '<!-- end of gpu results -->'

/** Why these results must not be quoted; undefined when they may. */
export function whyNotRecorded(results: GpuResults): string | undefined {
  if (results.gpu === null) return 'there was no GPU'
  if (countWrongRows(results) > 0) return `${countWrongRows(results)} rows have wrong results`
  if (results.tests === undefined) return 'the tests did not run'
  if (results.tests.failed > 0) return `${results.tests.failed} tests failed`
  if (!/^[0-9a-f]{12}$/.test(results.commit)) return `${results.commit} is no commit`
  return undefined
}

/** The page with its GPU results replaced; undefined when it has no place for them. */
export function replaceGpuResults(page: string, text: string): string | undefined {
  const begin = page.indexOf(BEGIN)
  const end = page.indexOf(END)
  if (begin < 0 || end < begin) return undefined
  return `${page.slice(0, begin + BEGIN.length)}\n\n${text}\n${page.slice(end)}`
}

function record(files: readonly string[]): number {
  if (files.length === 0) {
    process.stderr.write('usage: npx tsx bench/record-gpu.ts RUN.json [RUN.json …]\n')
    return 2
  }
  const results = mergeResults(files.map((file) => JSON.parse(readFileSync(file, 'utf8'))))
  const why = whyNotRecorded(results)
  const page = replaceGpuResults(readFileSync(PAGE, 'utf8'), renderResults(results))
  if (why !== undefined || page === undefined) {
    process.stderr.write(`not recorded: ${why ?? `${PAGE} has no place for GPU results`}\n`)
    return 1
  }
  const file = `bench/results/${deviceSlug(results.device)}.json`
  writeFileSync(file, `${JSON.stringify(results, null, 1)}\n`)
  writeFileSync(PAGE, page)
  process.stdout.write(`${file} and ${PAGE}\n`)
  return 0
}

const [, script, ...files] = process.argv
if (script !== undefined && import.meta.url === pathToFileURL(script).href) {
  process.exitCode = record(files)
}
