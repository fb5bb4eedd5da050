/**
 * PlanReport: a decision with the timelines behind it, of a layer from the middle of the model. What
 * `nanoweave plan` prints, draws and writes as a trace.
 */

import type { LayeredProgram } from '../program/layered.ts'
import { LANES, type Lane, type Program } from '../program/types.ts'
import type { Hardware } from './hardware.ts'
import { applySchedule, describeSchedule, partBounds, type Schedule, SERIAL } from './schedule.ts'
import { chooseSchedule, type Decision } from './search.ts'
import type { StepShape } from './step-shape.ts'
import { predictTimeline, type TimedOp } from './timeline.ts'

/** What runs from the start of a layer to the start of the next, neighbours included. */
export interface LayerTimeline {
  readonly schedule: Schedule
  readonly description: string
  /** Of the whole step. */
  readonly stepSeconds: number
  /** Of the window: 0 is where the layer's first op starts. */
  readonly seconds: number
  /** Cut to the window. */
  readonly ops: readonly TimedOp[]
  /** Time of the window in which a lane runs nothing. */
  readonly idleSeconds: Readonly<Record<Lane, number>>
}

export interface PlanReport {
  readonly model: string
  readonly hardware: string
  readonly sources: readonly string[]
  readonly ranks: number
  readonly numTokens: number
  readonly numSeqs: number
  readonly numLayers: number
  readonly decision: Decision
  readonly serial: LayerTimeline
  /** The best overlapped schedule, chosen or not. */
  readonly overlapped: LayerTimeline | undefined
}

export function planReport(options: {
  readonly model: string
  readonly hardware: Hardware
  readonly program: LayeredProgram
  readonly shape: StepShape
}): PlanReport {
  const { model, hardware, program, shape } = options
  const decision = chooseSchedule(hardware, program, shape)
  const { best, serialSeconds } = decision
  const draw = (schedule: Schedule, stepSeconds: number) =>
    layerTimeline(hardware, program, shape, schedule, stepSeconds)
  return {
    model,
    hardware: hardware.title,
    sources: hardware.sources,
    ranks: program.long.tp,
    numTokens: shape.numTokens,
    numSeqs: shape.numSeqs,
    numLayers: program.numLayers,
    decision,
    serial: draw(SERIAL, serialSeconds),
    overlapped: best && draw(best.schedule, best.seconds),
  }
}

function layerTimeline(
  hardware: Hardware,
  { long, period }: LayeredProgram,
  shape: StepShape,
  schedule: Schedule,
  stepSeconds: number,
): LayerTimeline {
  const program: Program = applySchedule(long, schedule)
  const bounds = partBounds(schedule, shape.numTokens)
  const { ops } = predictTimeline(hardware, program, shape, bounds, schedule.shares)
  const startOf = (layer: number) => {
    const own = ops.filter(({ label }) => label.startsWith(`layers.${layer}.`))
    return Math.min(...own.map(({ startSeconds }) => startSeconds))
  }
  const begin = startOf(period)
  const end = Math.min(startOf(period + 1), ops.at(-1)!.endSeconds)
  const cut = (seconds: number) => Math.min(end, Math.max(begin, seconds)) - begin
  const inside = ops
    .filter(({ startSeconds, endSeconds }) => endSeconds > begin && startSeconds < end)
    .map((op) => ({
      ...op,
      startSeconds: cut(op.startSeconds),
      endSeconds: cut(op.endSeconds),
    }))
  const idle = (lane: Lane) =>
    inside.reduce(
      (left, op) => (op.lane === lane ? left - (op.endSeconds - op.startSeconds) : left),
      end - begin,
    )
  const idleSeconds = Object.fromEntries(LANES.map((lane) => [lane, Math.max(0, idle(lane))]))
  return {
    schedule,
    description: describeSchedule(schedule),
    stepSeconds,
    seconds: end - begin,
    ops: inside,
    idleSeconds: idleSeconds as Record<Lane, number>,
  }
}
