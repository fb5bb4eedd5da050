/**
 * The last step of scripts/gpu-run.sh: gathers what the steps left in WORK into one file in OUT, named
 * after the device (h200.json), and prints a short table. Exits 1 when a step failed, a test failed
 * or a result was wrong.
 *
 *   collect.js WORK OUT
 */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
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

const [work, out] = process.argv.slice(2)
if (work === undefined || out === undefined) {
  process.stderr.write('usage: collect.js WORK OUT\n')
  process.exit(2)
}

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

const machine = describeMachine('cuda')
const tests = readJson<{ totals: Omit<TestTotals, 'notRun'>; notRun: number }>(out, 'test-gpu.json')
const peaks = readJson<NonNullable<GpuResults['peaks']>>(work, 'peaks.json')
const facts = readJson<Record<string, unknown>>(work, 'facts.json')
const nccl = readJson<Record<string, unknown>>(work, 'nccl.json')
const interference = readJson<unknown>(work, 'interference.json')
const peers = ['torch-ops.json', 'torch-engine.json']
  .map((name) => readJson<PeerReport>(work, name))
  .filter((report) => report !== undefined)
const reports = readdirSync(work)
  .filter((name) => /^bench-.*\.json$/.test(name))
  .sort()
  .map((name) => readJson<GpuResults['reports'][number]>(work, name)!)

const results: GpuResults = {
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
const name = machine.gpu === null ? 'trial' : deviceSlug(results.device)
writeFileSync(path.join(out, `${name}.json`), `${JSON.stringify(results, null, 1)}\n`)
process.stdout.write(formatResults(results))
const failedSteps = results.steps.filter(({ state }) => state !== 'ok').map((step) => step.name)
if (failedSteps.length > 0) process.stdout.write(`not ok: ${failedSteps.join(', ')}\n`)
const wrong = countWrongRows(results)
if (wrong > 0) process.stdout.write(`rows with wrong results: ${wrong}\n`)
const isGood = failedSteps.length === 0 && wrong === 0 && (results.tests?.failed ?? 0) === 0
process.exitCode = isGood ? 0 : 1
