/**
 * `nanoweave simulate`: what a deployment would do under load, on a virtual clock: latencies and
 * throughput over request rates, or the best layout for a number of devices. No GPU, no weights.
 */

import { readFile } from 'node:fs/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { EngineError } from '../../errors.ts'
import { IN_TURN } from '../../planner/hardware.ts'
import { createPolicy } from '../../scheduler/policies/index.ts'
import { describeLayout, type Layout, searchLayouts } from '../../simulator/layouts.ts'
import {
  formatSimulations,
  type RatePoint,
  renderSimulation,
  type SimulationReport,
} from '../../simulator/page.ts'
import { type SimulationOptions, simulate } from '../../simulator/simulate.ts'
import {
  ARRIVAL_PROCESSES,
  type ArrivalName,
  findLengthTrace,
  generateWorkload,
  LENGTH_TRACES,
  parseTrace,
  type WorkloadOptions,
} from '../../workload/index.ts'
import { parseCount, parseNumber } from '../options.ts'
import { formatPairs, note, writeJson, writeOut } from '../output.ts'
import {
  findMachine,
  findModel,
  hasExperts,
  type PlannedModel,
  plannedProgram,
} from '../planning.ts'
import { checkFolders, saveFile } from '../save.ts'

interface SimulateFlags {
  readonly preset?: string
  readonly hardware: string
  readonly tp: number
  readonly replicas: number
  readonly prefillReplicas: number
  readonly expertsOverRanks?: true
  readonly devices?: number
  readonly trace: string
  readonly arrivals?: ArrivalName
  readonly rate: readonly number[]
  readonly requests: number
  readonly seed: number
  readonly ttft: number
  readonly tpot: number
  readonly maxNumSeqs: number
  readonly maxNumBatchedTokens: number
  readonly schedulerPolicy?: string
  readonly overlap: boolean
  readonly json?: true
  readonly html?: string
}

function parseRates(text: string): number[] {
  const rates = text.split(',').map(parseNumber)
  if (rates.some((rate) => rate <= 0)) throw new InvalidArgumentError('rates are more than 0')
  return rates.sort((a, b) => a - b)
}

const traceNames = LENGTH_TRACES.map(({ name }) => name).join(', ')

const examples = `
Traces: ${traceNames}, or a file (JSON lines or Azure's CSV).

Examples:
  nanoweave simulate --preset llama-3-70b --tp 8 --hardware h100 --trace azure-conversation --rate 2,4,8,12 --html load.html
  nanoweave simulate --preset llama-3-70b --hardware h100 --devices 16 --rate 20 --ttft 500 --tpot 40
  nanoweave simulate --preset llama-3-8b --hardware l40s --trace sharegpt --rate 5 --json`

async function readWorkload(name: string): Promise<WorkloadOptions['trace']> {
  if (LENGTH_TRACES.some((trace) => trace.name === name)) return findLengthTrace(name)
  try {
    return parseTrace(await readFile(name, 'utf8'))
  } catch (error) {
    if (error instanceof EngineError) throw error
    // Neither a name nor a file: the message lists the names.
    return findLengthTrace(name)
  }
}

interface Run {
  readonly flags: SimulateFlags
  readonly model: PlannedModel
  readonly trace: WorkloadOptions['trace']
}

function optionsAt(
  { flags, model, trace }: Run,
  rate: number,
): Omit<SimulationOptions, 'deployment'> {
  const longest = model.model.maxPositions
  const requests = generateWorkload({
    trace,
    arrivals: flags.arrivals,
    rate,
    numRequests: flags.requests,
    durationMs: undefined,
    seed: flags.seed,
    maxPromptTokens: Math.floor(longest / 2),
    maxOutputTokens: Math.floor(longest / 2),
  })
  const { schedulerPolicy: order } = flags
  createPolicy({ order })
  return {
    hardware: findMachine(flags.hardware),
    requests,
    targets: { ttftMs: flags.ttft, tpotMs: flags.tpot },
    maxNumSeqs: flags.maxNumSeqs,
    maxNumBatchedTokens: flags.maxNumBatchedTokens,
    policy: { order },
    overlap: flags.overlap,
  }
}

/** The layout asked for, or the best one at the highest rate. */
function chooseLayout(run: Run): { layout: Layout; layouts: SimulationReport['layouts'] } {
  const { flags, model } = run
  const { devices, expertsOverRanks = false, replicas, prefillReplicas } = flags
  if (devices === undefined) {
    const layout: Layout = {
      tensorParallel: flags.tp,
      instances: replicas,
      prefillInstances: prefillReplicas,
      expertsOverRanks,
    }
    return { layout, layouts: [] }
  }
  const results = searchLayouts({
    ...optionsAt(run, flags.rate.at(-1)!),
    devices,
    hasExperts: hasExperts(model),
    programOf: (tensorParallel, overRanks) => {
      try {
        return plannedProgram(model, { tensorParallel, expertsOverRanks: overRanks })
      } catch (error) {
        if (error instanceof EngineError && error.code === 'ERR_UNSUPPORTED_LAYOUT')
          return undefined
        throw error
      }
    },
  })
  const layouts = results.map(({ layout, simulation }) => ({
    name: describeLayout(layout),
    simulation,
  }))
  return { layout: results[0]!.layout, layouts }
}

function describeSchedules({ overlap, hardware }: SimulateFlags): string {
  if (!overlap) return 'serial'
  const { lanesOverlap, title } = findMachine(hardware)
  return lanesOverlap
    ? 'as the planner chooses'
    : `serial: a rank of ${title} ${IN_TURN}, so there is nothing to overlap`
}

function runRates(run: Run): SimulationReport {
  const { flags, model } = run
  const { layout, layouts } = chooseLayout(run)
  const program = plannedProgram(model, layout)
  const points = flags.rate.map((rate): RatePoint => {
    note(`simulating ${flags.requests} requests at ${rate}/s`)
    return {
      rate,
      simulation: simulate({ ...optionsAt(run, rate), deployment: { program, ...layout } }),
    }
  })
  const { devices, kvTokens } = points[0]!.simulation
  return {
    facts: [
      ['model', model.name],
      ['hardware', `${devices} × ${findMachine(flags.hardware).title}`],
      ['layout', `${describeLayout(layout)}, room for ${kvTokens} tokens of KV in each instance`],
      ['load', `${flags.requests} requests of ${flags.trace}, seed ${flags.seed}`],
      ['schedule', describeSchedules(flags)],
    ],
    targets: { ttftMs: flags.ttft, tpotMs: flags.tpot },
    points,
    layouts,
  }
}

async function runSimulate(folder: string | undefined, flags: SimulateFlags): Promise<void> {
  if (flags.requests < 1) throw new EngineError('ERR_USAGE', '--requests is at least 1')
  const run = {
    flags,
    model: findModel(folder, flags.preset),
    trace: await readWorkload(flags.trace),
  }
  await checkFolders([flags.html])
  const report = runRates(run)
  if (flags.html !== undefined) await saveFile(flags.html, renderSimulation(report))
  if (flags.json === true) return writeJson(report)
  const rows = report.points.map(({ rate, simulation }) => ({ name: String(rate), simulation }))
  const layouts =
    report.layouts.length === 0 ? '' : `${formatSimulations('layout', report.layouts)}\n`
  await writeOut(
    `${formatPairs(report.facts)}\n\n${layouts}${formatSimulations('requests/s', rows)}`,
  )
}

export function registerSimulate(program: Command): void {
  program
    .command('simulate')
    .argument('[MODEL]', 'model folder; or --preset')
    .summary('predict latency and throughput under load')
    .description('Runs the scheduler on a virtual clock against a predicted machine.')
    .option('--preset <NAME>', 'a published model instead of a folder; `plan --list-presets`')
    .option('--hardware <NAME|FILE>', 'a preset, or a tune file', 'h100')
    .option('--tp <W>', 'ranks of an instance', parseCount, 1)
    .option('--replicas <N>', 'instances', parseCount, 1)
    .option('--prefill-replicas <N>', 'further instances that only compute prompts', parseCount, 0)
    .option('--experts-over-ranks', 'whole experts dealt over the ranks, instead of split')
    .option('--devices <N>', 'find the best layout on so many devices', parseCount)
    .option('--trace <NAME|FILE>', 'lengths of requests', LENGTH_TRACES[0]!.name)
    .addOption(
      new Option('--arrivals <NAME>', 'how requests come').choices(
        ARRIVAL_PROCESSES.map(({ name }) => name),
      ),
    )
    .option('--rate <LIST>', 'requests per second: 2,4,8', parseRates, [1])
    .option('--requests <N>', 'of each run', parseCount, 1000)
    .option('--seed <N>', 'the same seed asks for the same', parseCount, 1)
    .option('--ttft <MS>', 'target for the first token', parseNumber, 1000)
    .option('--tpot <MS>', 'target for each token after it', parseNumber, 50)
    .option('--max-num-seqs <N>', 'sequences at once in an instance', parseCount, 512)
    .option('--max-num-batched-tokens <N>', 'tokens of a step', parseCount, 8192)
    .option('--scheduler-policy <NAME>', 'order of the queue')
    .option('--no-overlap', 'serial programs, whatever the planner thinks')
    .option('--json', 'print the report as JSON')
    .option('--html <FILE>', 'draw the curves as one HTML page')
    .addHelpText('after', examples)
    .action((folder: string | undefined, flags: SimulateFlags) => runSimulate(folder, flags))
}
