/** `nanoweave inspect`: what a model folder holds, what it needs, and what this version cannot run. */

import { type Command, Option } from 'commander'
import type { Precision } from '../../engine/types.ts'
import { EngineError } from '../../errors.ts'
import { type AttentionSpec, loadModel, type Model, modelFootprint } from '../../models/index.ts'
import { loadChatTemplate, loadTokenizer } from '../../tokenizer/index.ts'
import { exitCodeOf } from '../exit-codes.ts'
import { describeExperts, type ExpertsReport, formatExperts } from '../inspect-experts.ts'
import { formatLoads, inspectLoads, type LoadsFlags, type LoadsReport } from '../inspect-loads.ts'
import type { Interrupt } from '../interrupt.ts'
import { parseCount, parsePositive, precisionOption } from '../options.ts'
import { formatBytes, formatCount, formatPairs, writeJson, writeOut } from '../output.ts'

const degrees = [1, 2, 4, 8] as const

interface InspectFlags extends LoadsFlags {
  readonly precision: Precision
  readonly experts?: boolean
  readonly json?: boolean
}

interface LayoutReport {
  readonly tensorParallel: number
  readonly weightBytesPerRank?: number
  readonly kvBytesPerTokenPerRank?: number
  /** Why the layout does not fit. */
  readonly unsupported?: string
}

interface ModelReport {
  readonly folder: string
  readonly supported: true
  readonly architecture: string
  readonly parameters: number
  readonly weightDtype: string
  /** Formats in the files that become bf16 at load. */
  readonly convertedFormats: readonly string[]
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  /** Elements of the vector that the KV cache holds per token, where attention is latent. */
  readonly latentDim?: number
  readonly maxPositions: number
  readonly eosTokenIds: readonly number[]
  readonly tokenizer: string
  /** Tokens the tokenizer knows, where there is one; the model's rows beyond are padding. */
  readonly tokenizerTokens?: number
  readonly chatTemplate: string
  readonly layouts: readonly LayoutReport[]
  readonly experts?: ExpertsReport
  /** With --experts. */
  readonly expertLoads?: LoadsReport
  /** Of layers that predict further tokens, which are left alone. */
  readonly unusedTensors?: number
}

/** What the folder's text side is, or why it cannot be used; a model runs without it, on tokens. */
async function describeText(describe: () => Promise<string>): Promise<string> {
  try {
    return await describe()
  } catch (error) {
    if (!(error instanceof EngineError)) throw error
    return `unusable: ${error.message}`
  }
}

function describeLayout(model: Model, tensorParallel: number, flags: InspectFlags): LayoutReport {
  try {
    const { precision } = flags
    const { weightBytesPerRank, kvBytesPerBlock } = modelFootprint(model, {
      tensorParallel,
      precision,
    })
    return { tensorParallel, weightBytesPerRank, kvBytesPerTokenPerRank: kvBytesPerBlock(1) }
  } catch (error) {
    if (!(error instanceof EngineError && error.code === 'ERR_UNSUPPORTED_LAYOUT')) throw error
    return { tensorParallel, unsupported: error.message }
  }
}

async function inspectModel(model: Model, flags: InspectFlags): Promise<ModelReport> {
  const { spec, folder } = model
  const attention = describeAttention(spec.layers[0]!.attention)
  const unusedTensors = countUnused(model)
  const { parameters } = modelFootprint(model, { tensorParallel: 1, precision: flags.precision })
  const experts = describeExperts(model, flags.precision)
  let tokenizerTokens: number | undefined
  const tokenizer = await describeText(async () => {
    tokenizerTokens = (await loadTokenizer(folder))?.vocabSize
    return tokenizerTokens === undefined ? 'none' : `${tokenizerTokens} tokens`
  })
  return {
    folder,
    supported: true,
    architecture: model.architecture,
    parameters,
    weightDtype: model.weightDtype,
    convertedFormats: model.convertedFormats,
    vocabSize: model.vocabSize,
    hiddenSize: spec.hiddenSize,
    layers: spec.layers.length,
    ...attention,
    maxPositions: model.maxPositions,
    eosTokenIds: model.eosTokenIds,
    tokenizer,
    ...(tokenizerTokens !== undefined && { tokenizerTokens }),
    chatTemplate: await describeText(async () => {
      const template = await loadChatTemplate(folder)
      await template?.close()
      return template === undefined ? 'none' : 'yes'
    }),
    layouts: degrees.map((degree) => describeLayout(model, degree, flags)),
    ...(experts && { experts }),
    ...(unusedTensors > 0 && { unusedTensors }),
  }
}

function describeAttention(
  attention: AttentionSpec,
): Pick<ModelReport, 'heads' | 'kvHeads' | 'headDim' | 'latentDim'> {
  const { heads } = attention
  if (attention.kind === 'grouped') {
    const { kvHeads, headDim } = attention
    return { heads, kvHeads, headDim }
  }
  const { nopeDim, ropeDim, latentDim } = attention
  return { heads, kvHeads: 1, headDim: nopeDim + ropeDim, latentDim: latentDim + ropeDim }
}

/** Tensors of layers that predict further tokens. */
function countUnused({ spec: { unusedPrefix }, tensors }: Model): number {
  if (unusedPrefix === undefined) return 0
  return [...tensors.tensors.keys()].filter((name) => name.startsWith(unusedPrefix)).length
}

function formatLayouts({ layouts, maxPositions }: ModelReport): string {
  const rows = layouts.map((layout) => {
    const { tensorParallel, weightBytesPerRank = 0, kvBytesPerTokenPerRank = 0 } = layout
    if (layout.unsupported !== undefined) return `${tensorParallel}`.padEnd(6) + layout.unsupported
    return [
      String(tensorParallel).padEnd(6),
      formatBytes(weightBytesPerRank).padEnd(14),
      formatBytes(kvBytesPerTokenPerRank).padEnd(14),
      formatBytes(kvBytesPerTokenPerRank * maxPositions),
    ].join('')
  })
  const heading = 'tp    weights       KV a token    KV of a full context   (each rank)'
  return [heading, ...rows].join('\n')
}

function describeWeights({ weightDtype, convertedFormats: formats }: ModelReport): string {
  return formats.length === 0 ? weightDtype : `${weightDtype} (${formats.join(', ')} in the files)`
}

function formatReport(report: ModelReport): string {
  const { layers, hiddenSize, heads, kvHeads, headDim, vocabSize, tokenizerTokens } = report
  const { experts } = report
  const isPadded = tokenizerTokens !== undefined && tokenizerTokens < vocabSize
  const cached =
    report.latentDim === undefined
      ? `${kvHeads} KV heads`
      : `latent vectors of ${report.latentDim} in the KV cache, on every rank`
  const shape = `${layers} layers, hidden ${hiddenSize}, ${heads} heads, ${cached}, head size ${headDim}`
  const unused = report.unusedTensors
  const pairs = formatPairs([
    ['architecture', report.architecture],
    ['parameters', `${formatCount(report.parameters)}, ${describeWeights(report)}`],
    ['shape', shape],
    ...(experts ? [['experts', shapeOfExperts(experts)] as const] : []),
    ...(unused === undefined
      ? []
      : [['left alone', `${unused} tensors of layers that predict further tokens`] as const]),
    ['vocabulary', `${vocabSize}${isPadded ? ', padded' : ''}`],
    ['context', `${report.maxPositions} tokens`],
    ['tokenizer', report.tokenizer],
    ['chat template', report.chatTemplate],
  ])
  const tables = [
    formatLayouts(report),
    ...(experts ? [formatExperts(experts)] : []),
    ...(report.expertLoads ? [formatLoads(report.expertLoads)] : []),
  ]
  return `${pairs}\n\n${tables.join('\n\n')}\n`
}

function shapeOfExperts(report: ExpertsReport): string {
  const { experts, choices, intermediateSize, layers, sharedExpert } = report
  const shared = sharedExpert ? ' and a shared one' : ''
  return `${experts} of width ${intermediateSize}, ${choices} a token${shared}, in ${layers} layers`
}

/** Reports; the exit code says whether this version runs the model. */
async function runInspect(folder: string, flags: InspectFlags, signal: AbortSignal): Promise<void> {
  let report: ModelReport
  try {
    const model = loadModel(folder)
    report = await inspectModel(model, flags)
    if (flags.experts === true)
      report = { ...report, expertLoads: await inspectLoads(model, flags, signal) }
  } catch (error) {
    const code = error instanceof EngineError ? error.code : 'ERR_INTERNAL'
    if (code !== 'ERR_UNSUPPORTED_MODEL' || flags.json !== true) throw error
    const { message } = error as EngineError
    await writeJson({ folder, supported: false, code, unsupported: message })
    process.exitCode = exitCodeOf(code)
    return
  }
  if (flags.json === true) await writeJson(report)
  else await writeOut(formatReport(report))
}

/** Options that say something of `--experts`. */
const LOADS_OPTIONS = ['ep', 'expertSlots', 'prompt', 'trace', 'saveTrace']

/** ERR_USAGE for options of `--experts` without it: they would be ignored. */
function requireLoads(command: Command): void {
  if (command.getOptionValue('experts') === true) return
  const given = command.options.find((option) => {
    const name = option.attributeName()
    return LOADS_OPTIONS.includes(name) && command.getOptionValueSource(name) === 'cli'
  })
  if (given === undefined) return
  throw new EngineError('ERR_USAGE', `${given.long} is about loads of experts: give --experts too`)
}

export function registerInspect(program: Command, { signal }: Interrupt): void {
  program
    .command('inspect')
    .argument('<MODEL>', 'model folder')
    .summary('architecture, parameters, memory per rank')
    .description('What a model folder holds and needs, and what this version cannot run and why.')
    .addOption(precisionOption().default('auto'))
    .option('--experts', 'loads of experts, in a short run of the model')
    .option('--ep <N>', 'ranks that would share them', parsePositive, 4)
    .option('--expert-slots <N>', 'slots of each rank for replicas', parseCount, 1)
    .addOption(new Option('--prompt <TEXT>', 'what the run continues').conflicts('trace'))
    .option('--trace <FILE>', 'loads from a recorded trace, without a run')
    .addOption(
      new Option('--save-trace <FILE>', 'record the run, for --expert-placement').conflicts(
        'trace',
      ),
    )
    .option('--json', 'one JSON document instead of text')
    .action((folder: string, flags: InspectFlags, command: Command) => {
      requireLoads(command)
      return runInspect(folder, flags, signal)
    })
}
