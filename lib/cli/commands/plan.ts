/**
 * `nanoweave plan`: predicts a step of a model on a machine, chooses its schedule, and says or draws
 * why. Needs no weights and no GPU.
 */

import type { Command } from 'commander'
import { EngineError } from '../../errors.ts'
import { modelPresetNames } from '../../models/index.ts'
import { chromeTrace } from '../../planner/chrome-trace.ts'
import { renderPlan } from '../../planner/page.ts'
import { hardwareNames } from '../../planner/presets.ts'
import { type LayerTimeline, type PlanReport, planReport } from '../../planner/report.ts'
import { mixedShape } from '../../planner/step-shape.ts'
import { parseCount } from '../options.ts'
import { formatNumber, formatPairs, writeJson, writeOut } from '../output.ts'
import { findMachine, findModel, plannedProgram } from '../planning.ts'
import { saveFile } from '../save.ts'

interface PlanFlags {
  readonly preset?: string
  readonly tp: number
  readonly hardware: string
  readonly tokens: number
  readonly decodes: number
  readonly context: number
  readonly promptLength: number
  readonly expertsOverRanks?: true
  readonly listPresets?: true
  readonly json?: true
  readonly trace?: string
  readonly html?: string
}

const MAX_TOKENS = 65536

const examples = `
Examples:
  nanoweave plan --preset llama-3-70b --tp 8 --hardware h100 --tokens 8192 --html plan.html
  nanoweave plan --preset llama-2-70b --tp 8 --hardware a100 --tokens 2048 --decodes 1024 --context 1377
  nanoweave plan MODEL --tp 2 --hardware tune.json --tokens 512 --json
  nanoweave plan --list-presets`

function describeTimeline(timeline: LayerTimeline): string {
  const { ops, seconds, idleSeconds } = timeline
  const lanes = (['compute', 'memory', 'network'] as const).filter((lane) =>
    ops.some((op) => op.lane === lane),
  )
  const idle = lanes.map(
    (lane) => `${lane} idle ${Math.round((100 * idleSeconds[lane]) / seconds)} %`,
  )
  return `${formatNumber(1e3 * timeline.stepSeconds)} ms a step, ${formatNumber(1e6 * seconds)} µs a layer; ${idle.join(', ')}`
}

function formatPlan(report: PlanReport): string {
  const { decision, serial, overlapped } = report
  const pairs: [string, string][] = [
    [
      'model',
      `${report.model}, ${report.numLayers} layers, ${report.ranks} rank${report.ranks === 1 ? '' : 's'}`,
    ],
    ['hardware', report.hardware],
    [
      'step',
      `${report.numTokens} tokens of ${report.numSeqs} sequence${report.numSeqs === 1 ? '' : 's'}`,
    ],
    ['serial', describeTimeline(serial)],
  ]
  if (overlapped !== undefined) {
    pairs.push(['best', overlapped.description], ['', describeTimeline(overlapped)])
  }
  const gain = `${(100 * decision.gain).toFixed(1)} % faster than serial`
  pairs.push(['decision', decision.refusal === undefined ? gain : `serial: ${decision.refusal}`])
  return `${formatPairs(pairs)}\n`
}

async function runPlan(folder: string | undefined, flags: PlanFlags): Promise<void> {
  if (flags.listPresets === true) {
    const pairs: [string, string][] = [
      ['models', modelPresetNames().join(', ')],
      ['hardware', hardwareNames().join(', ')],
    ]
    return writeOut(`${formatPairs(pairs)}\n`)
  }
  const { tokens, decodes, context, promptLength, tp, expertsOverRanks = false } = flags
  if (tokens < 1 || tokens > MAX_TOKENS || decodes > tokens) {
    throw new EngineError(
      'ERR_USAGE',
      `--tokens is 1 to ${MAX_TOKENS}, and no fewer than --decodes`,
    )
  }
  const model = findModel(folder, flags.preset)
  const report = planReport({
    model: model.name,
    hardware: findMachine(flags.hardware),
    program: plannedProgram(model, { tensorParallel: tp, expertsOverRanks }),
    shape: mixedShape({
      numTokens: tokens,
      numDecodes: decodes,
      context,
      promptLength: Math.max(1, promptLength || tokens - decodes),
    }),
  })
  if (flags.html !== undefined) await saveFile(flags.html, renderPlan(report))
  const trace = chromeTrace(report)
  if (flags.trace !== undefined) await saveFile(flags.trace, `${JSON.stringify(trace)}\n`)
  if (flags.json === true) await writeJson(trace)
  else await writeOut(formatPlan(report))
}

export function registerPlan(program: Command): void {
  program
    .command('plan')
    .argument('[MODEL]', 'model folder; or --preset')
    .summary('predict a step and choose how to overlap it')
    .description('Predicts a step of a model on a machine and chooses its schedule.')
    .option('--preset <NAME>', 'a published model instead of a folder; --list-presets shows them')
    .option('--tp <W>', 'ranks that share every layer', parseCount, 1)
    .option('--hardware <NAME|FILE>', 'a preset, or a tune file', 'h100')
    .option('--tokens <N>', 'tokens of the step', parseCount, 2048)
    .option('--decodes <N>', 'of them, sequences that compute one token', parseCount, 0)
    .option('--context <N>', 'tokens those sequences have behind them', parseCount, 1024)
    .option(
      '--prompt-length <N>',
      'of the prompts that fill the step (default: one)',
      parseCount,
      0,
    )
    .option('--experts-over-ranks', 'whole experts dealt over the ranks, instead of split')
    .option('--list-presets', 'models and hardware known by name')
    .option('--json', 'print a Chrome trace of a layer, the decision in otherData')
    .option('--trace <FILE>', 'write the Chrome trace')
    .option('--html <FILE>', 'draw the timeline of a layer as one HTML page')
    .addHelpText('after', examples)
    .action((folder: string | undefined, flags: PlanFlags) => runPlan(folder, flags))
}
