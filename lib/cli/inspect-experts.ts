/** What `inspect` says of a model's routed experts: their number and sizes, and what ranks would hold. */

import type { Precision } from '../engine/types.ts'
import { EngineError } from '../errors.ts'
import { type Model, modelFootprint } from '../models/index.ts'
import { formatBytes } from './output.ts'

const DEGREES = [1, 2, 4, 8] as const

export interface ExpertsReport {
  /** Layers with experts. */
  readonly layers: number
  readonly experts: number
  readonly choices: number
  readonly intermediateSize: number
  readonly sharedExpert: boolean
  /** Degrees of expert parallelism that fit, one attention rank a group. */
  readonly layouts: readonly {
    readonly expertParallel: number
    readonly expertsPerRank: number
    readonly weightBytesPerRank: number
  }[]
}

/** Undefined for a dense model. All layers with experts are alike in every known model. */
export function describeExperts(model: Model, precision: Precision): ExpertsReport | undefined {
  const blocks = model.spec.layers.flatMap(({ feedForward }) =>
    feedForward.kind === 'experts' ? [feedForward] : [],
  )
  const [first] = blocks
  if (first === undefined) return undefined
  const experts = first.gates.length
  const layouts = DEGREES.flatMap((expertParallel) => {
    try {
      const layout = { tensorParallel: 1, expertParallel, precision }
      const { weightBytesPerRank } = modelFootprint(model, layout)
      const expertsPerRank = Math.ceil(experts / expertParallel)
      return [{ expertParallel, expertsPerRank, weightBytesPerRank }]
    } catch (error) {
      if (error instanceof EngineError && error.code === 'ERR_UNSUPPORTED_LAYOUT') return []
      throw error
    }
  })
  return {
    layers: blocks.length,
    experts,
    choices: first.routing.choices,
    intermediateSize: first.intermediateSize,
    sharedExpert: first.shared !== undefined,
    layouts,
  }
}

export function formatExperts({ layouts }: ExpertsReport): string {
  const rows = layouts.map(({ expertParallel, expertsPerRank, weightBytesPerRank }) =>
    [
      String(expertParallel).padEnd(6),
      String(expertsPerRank).padEnd(14),
      formatBytes(weightBytesPerRank),
    ].join(''),
  )
  return ['ep    experts       weights   (each rank, tp 1)', ...rows].join('\n')
}
