/**
 * LayeredProgram: a deep model as two shallow programs of it. Layers repeat, so what a step of all
 * layers takes follows from steps of a few and of twice as many; planning 80 layers costs what six do.
 */

import type { Program } from './types.ts'

export interface LayeredProgram {
  /** Of `period` layers. */
  readonly short: Program
  /** Of 2 · `period` layers. */
  readonly long: Program
  readonly period: number
  readonly numLayers: number
}

export function mapLayered(
  layered: LayeredProgram,
  change: (program: Program) => Program,
): LayeredProgram {
  return { ...layered, short: change(layered.short), long: change(layered.long) }
}

/** The value of the whole model from those of its two programs. */
export function extrapolate(
  { period, numLayers }: Pick<LayeredProgram, 'period' | 'numLayers'>,
  short: number,
  long: number,
): number {
  return short + ((long - short) * (numLayers - period)) / period
}
