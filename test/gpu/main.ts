/**
 * `npm run test:gpu`: the op cases and model goldens on a GPU, several ranks of it as virtual ranks.
 *
 *   npm run test:gpu -- [--device cuda:0] [--only PATTERN] [--files ops/ops.test,goldens.test]
 *                       [--limit SECONDS] [--json FILE] [--allow-no-gpu]
 *
 * Exits 0 when everything passed, 1 when something failed, 3 without a GPU (0 with --allow-no-gpu).
 * `--check` runs nothing: it says whether the device is there. Each file has its share of the time.
 * `--device cpu` runs the same on the CPU, which shows that the runner itself works.
 */

import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { loadBinding } from '../../lib/native/load.ts'
import { type FileResult, runFile } from './file-run.ts'
import { SUITE, type SuiteFile } from './suite.ts'

const EXIT_FAILED = 1
const EXIT_USAGE = 2
const EXIT_UNSUPPORTED = 3

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda:0' },
    only: { type: 'string', default: '' },
    files: { type: 'string' },
    limit: { type: 'string', default: '3600' },
    json: { type: 'string' },
    'allow-no-gpu': { type: 'boolean', default: false },
    check: { type: 'boolean', default: false },
  },
})

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}

/** Why nothing can run on `device`; undefined when it is there. */
function whyMissing(device: string): string | undefined {
  const { devices, missing } = loadBinding().describeDevices()
  if (devices.some(({ name }) => name === device)) return undefined
  const kind = device.split(':')[0]!
  const found = devices.map(({ name }) => name).join(', ')
  return `no ${device}: ${missing[kind] ?? 'not on this machine'}; found: ${found}`
}

function countStates({ results, broken }: FileResult) {
  const of = (state: string) => results.filter((result) => result.state === state).length
  return { passed: of('passed'), failed: of('failed') + broken.length, skipped: of('skipped') }
}

function printFile(result: FileResult, seconds: number): void {
  const { passed, failed, skipped } = countStates(result)
  const rest = result.notRun === 0 ? '' : `, ${result.notRun} not run`
  print(
    `${result.file}: ${passed} passed, ${failed} failed, ${skipped} skipped${rest} (${seconds.toFixed(1)} s)`,
  )
  for (const { name, state, error } of result.results) {
    if (state === 'failed') print(`  FAILED ${name}\n    ${error?.replaceAll('\n', '\n    ')}`)
    if (state === 'skipped' && values.only === '') print(`  skipped ${name}`)
  }
  for (const error of result.broken) print(`  BROKEN ${error.replaceAll('\n', '\n    ')}`)
}

/** The first file's part of the time that is left for all of them. */
function shareOf(files: readonly SuiteFile[]): number {
  return files[0]!.share / files.reduce((sum, { share }) => sum + share, 0)
}

function sumUp(files: readonly FileResult[]) {
  const counts = files.map(countStates)
  const sum = (of: 'passed' | 'failed' | 'skipped') => counts.reduce((n, one) => n + one[of], 0)
  return {
    totals: { passed: sum('passed'), failed: sum('failed'), skipped: sum('skipped') },
    notRun: files.reduce((n, { notRun }) => n + notRun, 0),
  }
}

/** After every file: a run that is killed leaves what it has shown. */
function writeReport(files: readonly FileResult[], left: readonly string[]): void {
  if (values.json === undefined) return
  const report = { version: 1, device: values.device, ...sumUp(files), left, files }
  writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`)
}

async function runSuite(): Promise<number> {
  const only = values.files?.split(',')
  const unknown = only?.filter((name) => !SUITE.some((file) => file.name === name)) ?? []
  if (unknown.length > 0) {
    process.stderr.write(
      `no test file ${unknown.join(', ')}; there are: ${SUITE.map(({ name }) => name).join(', ')}\n`,
    )
    return EXIT_USAGE
  }
  const why = whyMissing(values.device)
  if (values.check && why === undefined) return 0
  if (values.check) {
    process.stderr.write(`${why}\n`)
    return EXIT_UNSUPPORTED
  }
  if (why !== undefined) {
    for (const { name, what } of SUITE) print(`skipped ${name} (${what}): ${why}`)
    print(`0 passed, 0 failed, ${SUITE.length} files skipped`)
    return values['allow-no-gpu'] ? 0 : EXIT_UNSUPPORTED
  }
  const deadlineMs = performance.now() + Number(values.limit) * 1000
  const finished: FileResult[] = []
  const left: string[] = []
  const wanted = SUITE.filter(({ name }) => only === undefined || only.includes(name))
  for (const file of SUITE) if (!wanted.includes(file)) left.push(`${file.name}: not asked for`)
  for (const [index, file] of wanted.entries()) {
    const start = performance.now()
    const result = await runFile(file, {
      device: values.device,
      pattern: values.only,
      deadlineMs: start + (deadlineMs - start) * shareOf(wanted.slice(index)),
    })
    printFile(result, (performance.now() - start) / 1000)
    finished.push(result)
    writeReport(finished, left)
  }
  for (const line of left) print(`skipped ${line}`)
  const { totals, notRun } = sumUp(finished)
  print(
    `${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped, ${notRun} not run on ${values.device}`,
  )
  return totals.failed > 0 || notRun > 0 || totals.passed === 0 ? EXIT_FAILED : 0
}

process.exitCode = await runSuite()
