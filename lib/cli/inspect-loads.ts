/**
 * `inspect --experts`: how often each expert is chosen, in a short run of the model or in a recorded
 * trace, what that means for ranks, and what balancing would make of it.
 */

import { requireSlots } from '../engine/expert-options.ts'
import { readExpertTrace, requireExperts } from '../engine/expert-trace.ts'
import type { EngineOptions } from '../engine/types.ts'
import { EngineError } from '../errors.ts'
import type { Model } from '../models/index.ts'
import { countFollowers, localShare, placeByAffinity } from '../parallel/balance/affinity.ts'
import { imbalance } from '../parallel/balance/eplb.ts'
import { planEplb } from '../parallel/balance/eplb-placement.ts'
import { evenShares, homeSlots, positionLoads } from '../parallel/balance/slots.ts'
import {
  type ExpertTrace,
  formatTrace,
  numTraceTokens,
  traceLoads,
} from '../parallel/balance/trace.ts'
import { saveFile } from './save.ts'
import { withEngine } from './with-engine.ts'

export interface LoadsFlags {
  readonly precision: EngineOptions['precision']
  readonly ep: number
  readonly expertSlots: number
  readonly prompt?: string
  readonly trace?: string
  readonly saveTrace?: string
}

interface LayerLoads {
  readonly layer: number
  /** Choices of each expert. */
  readonly experts: readonly number[]
  /** Rows of each rank when experts lie in order. */
  readonly ranks: readonly number[]
  readonly maxOverMean: number
  /** With the extra slots, as EPLB would place experts for these loads. */
  readonly balancedRanks: readonly number[]
  readonly balancedMaxOverMean: number
}

export interface LoadsReport {
  readonly tokens: number
  readonly choices: number
  readonly expertParallel: number
  readonly expertSlots: number
  readonly layers: readonly LayerLoads[]
  /** Of the choices that follow each other from layer to layer: on one rank, in order and placed. */
  readonly localShare: number
  readonly placedLocalShare: number
}

const SEQUENCES = 8
const TOKENS = 128

/**
 * From `--trace`, or from what the model says to itself. ERR_USAGE for ranks and slots that do not fit,
 * and for a trace of another model.
 */
export async function inspectLoads(
  model: Model,
  flags: LoadsFlags,
  signal: AbortSignal,
): Promise<LoadsReport> {
  const { trace: file, saveTrace } = flags
  requireLayout(requireExperts(model).experts, flags)
  const trace =
    file === undefined
      ? await recordTrace(model.folder, flags, signal)
      : readExpertTrace(file, model)
  if (saveTrace !== undefined) await saveFile(saveTrace, formatTrace(trace))
  return describeLoads(trace, flags)
}

function requireLayout(
  experts: number,
  { ep, expertSlots }: Pick<LoadsFlags, 'ep' | 'expertSlots'>,
): void {
  if (ep > experts)
    throw new EngineError('ERR_USAGE', `--ep ${ep}: there are ${experts} experts to share`)
  requireSlots(experts, ep, expertSlots)
}

function recordTrace(
  folder: string,
  { precision, prompt }: LoadsFlags,
  signal: AbortSignal,
): Promise<ExpertTrace> {
  const options: EngineOptions = { expertBalance: 'count', ...(precision && { precision }) }
  return withEngine(folder, options, signal, async (engine) => {
    const withoutText = prompt === undefined && engine.tokenizer === undefined
    const start = withoutText ? { tokens: [0] } : { prompt: prompt ?? 'The' }
    engine.startExpertTrace()
    // Seeds make the same run of every call.
    const runs = Array.from({ length: SEQUENCES }, (_, seed) =>
      engine.complete({ ...start, maxTokens: TOKENS, temperature: 1, seed, signal }),
    )
    await Promise.all(runs)
    return engine.stopExpertTrace()
  })
}

export function describeLoads(
  trace: ExpertTrace,
  { ep, expertSlots }: Pick<LoadsFlags, 'ep' | 'expertSlots'>,
): LoadsReport {
  const { experts } = trace
  const layout = {
    experts,
    positions: ep,
    slotsPerPosition: Math.ceil(experts / ep) + expertSlots,
  }
  const home = homeSlots(layout)
  const layers = traceLoads(trace).map((loads, layer) => {
    const ranks = positionLoads(loads, evenShares(home), layout)
    const balancedRanks = positionLoads(loads, planEplb(loads, home, layout), layout)
    return {
      layer,
      experts: loads,
      ranks,
      maxOverMean: imbalance(ranks),
      balancedRanks,
      balancedMaxOverMean: imbalance(balancedRanks),
    }
  })
  const followers = countFollowers(trace)
  const perRank = Math.ceil(experts / ep)
  const inOrder = layers.map(() =>
    Array.from({ length: experts }, (_, expert) => Math.floor(expert / perRank)),
  )
  return {
    tokens: numTraceTokens(trace),
    choices: trace.choices,
    expertParallel: ep,
    expertSlots,
    layers,
    localShare: localShare(followers, inOrder),
    placedLocalShare: localShare(followers, placeByAffinity(followers, experts, ep)),
  }
}

export function formatLoads(report: LoadsReport): string {
  const { tokens, expertParallel, expertSlots, layers } = report
  const rows = layers.map(({ layer, experts, ranks, maxOverMean, balancedMaxOverMean }) => {
    const total = experts.reduce((sum, count) => sum + count, 0)
    const busiest = experts.indexOf(Math.max(...experts))
    return [
      String(layer).padEnd(7),
      `${busiest} (${formatShare(experts[busiest]!, total)})`.padEnd(16),
      String(experts.filter((count) => count === 0).length).padEnd(9),
      ranks
        .map((rows) => formatShare(rows, total))
        .join(' ')
        .padEnd(6 * expertParallel + 2),
      maxOverMean.toFixed(2).padEnd(11),
      balancedMaxOverMean.toFixed(2),
    ].join('')
  })
  const heading = [
    'layer'.padEnd(7),
    'busiest expert'.padEnd(16),
    'unused'.padEnd(9),
    'ranks'.padEnd(6 * expertParallel + 2),
    'max/mean'.padEnd(11),
    `by EPLB with --expert-slots ${expertSlots}`,
  ].join('')
  return [
    `loads of experts over ${tokens} tokens, ep ${expertParallel}`,
    heading,
    ...rows,
    `from layer to layer ${percent(report.localShare)} of the choices stay on a rank, ${percent(report.placedLocalShare)} when placed by this trace`,
  ].join('\n')
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`
}

function formatShare(part: number, total: number): string {
  return `${total === 0 ? 0 : ((100 * part) / total).toFixed(0)} %`
}
