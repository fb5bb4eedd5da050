/**
 * The last step of scripts/gpu-run.sh: gathers what the steps left in WORK into one file in OUT, named
 * after the device (h200.json), and prints a short table. Exits 1 when a step failed, a test failed
 * or a result was wrong.
 *
 *   collect.js WORK OUT
 */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { describeMachine } from '../../lib/bench/machine.ts'
import {
  countWrongRows,
  deviceSlug,
  formatResults,
  type GpuResults,
  type PeerReport,
  type StepOutcome,
  type TestTotals,
} from './results.ts'

/** Undefined when the step that writes it did not get to. */
function readJson<Value>(folder: string, name: string): Value | undefined {
  const file = path.join(folder, name)
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined
}

function readSteps(folder: string): StepOutcome[] {
  const file = path.join(folder, 'steps')
  if (!existsSync(file)) return []
  const lines = readFileSync(file, 'utf8').trim().split('\n')
  return lines.map((line) => {
    const [name, state, seconds] = line.split(' ')
    return { name: name!, state: state!, seconds: Number(seconds) }
  })
}

/** Reads what the steps left; nothing is required to be there. */
export function gather(work: string, out: string): GpuResults {
  const machine = describeMachine('cuda')
  const tests = readJson<{ totals: Omit<TestTotals, 'notRun'>; notRun: number }>(
    out,
    'test-gpu.json',
  )
  const peaks = readJson<NonNullable<GpuResults['peaks']>>(work, 'peaks.json')
  const facts = readJson<unknown>(work, 'facts.json')
  const nccl = readJson<unknown>(work, 'nccl.json')
  const interference = readJson<unknown>(work, 'interference.json')
  const peers = ['torch-ops.json', 'torch-engine.json']
    .map((name) => readJson<PeerReport>(work, name))
    .filter((report) => report !== undefined)
  const reports = readdirSync(work)
    .filter((name) => /^bench-.*\.json$/.test(name))
    .sort()
    .map((name) => readJson<GpuResults['reports'][number]>(work, name)!)
  return {
    version: 1,
    device: machine.gpu?.name ?? peaks?.device ?? machine.cpu,
    gpu: machine.gpu ?? null,
    commit: machine.commit ?? 'unknown',
    date: machine.date,
    versions: Object.assign({ node: machine.node }, ...peers.map((peer) => peer.versions)),
    steps: readSteps(work),
    ...(tests !== undefined && { tests: { ...tests.totals, notRun: tests.notRun } }),
    ...(facts !== undefined && { facts }),
    ...(nccl !== undefined && { nccl }),
    ...(interference !== undefined && { interference }),
    ...(peaks !== undefined && { peaks }),
    reports,
    peers,
  }
}

/** What went wrong in a run, a line each. */
export function describeFailures(results: GpuResults): string[] {
  const failedSteps = results.steps.filter(({ state }) => state !== 'ok').map((step) => step.name)
  const wrong = countWrongRows(results)
  const failedTests = results.tests?.failed ?? 0
  return [
    ...(failedSteps.length > 0 ? [`not ok: ${failedSteps.join(', ')}`] : []),
    ...(wrong > 0 ? [`rows with wrong results: ${wrong}`] : []),
    ...(failedTests > 0 ? [`tests failed: ${failedTests}`] : []),
  ]
}

function collect(work: string, out: string): number {
  const results = gather(work, out)
  const name = results.gpu === null ? 'trial' : deviceSlug(results.device)
  writeFileSync(path.join(out, `${name}.json`), `${JSON.stringify(results, null, 1)}\n`)
  const failures = describeFailures(results)
  process.stdout.write([formatResults(results), ...failures, ''].join('\n'))
  return failures.length === 0 ? 0 : 1
}

const [, script, work, out] = process.argv
if (script !== undefined && import.meta.url === pathToFileURL(script).href) {
  if (work === undefined || out === undefined) {
    process.stderr.write('usage: collect.js WORK OUT\n')
    process.exit(2)
  }
  process.exitCode = collect(work, out)
}
