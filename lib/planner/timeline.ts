/**
 * Timeline: when every op of a program runs, predicted. Lanes take their ops in program order, an op
 * starts when what it waits for is done, and ops that run beside each other slow each other down:
 * a collective holds a fixed share of the device, attention another one beside a matmul (NanoFlow's
 * exchange of R for P, https://arxiv.org/abs/2408.12757, §4.1), and matmuls run in waves over the
 * units that are left.
 */

import { extrapolate, type LayeredProgram } from '../program/layered.ts'
import { hasParts } from '../program/shapes.ts'
import { LANES, type Lane, type Program } from '../program/types.ts'
import { type Hardware, performanceOf } from './hardware.ts'
import { type OpCost, programCosts } from './op-cost.ts'
import type { StepShape } from './step-shape.ts'

/** Shares of the device that a schedule gives away, 0..1. */
export interface LaneShares {
  /** To collectives, for as long as one runs. */
  readonly network: number
  /** To the memory lane while a matmul runs beside it. */
  readonly memory: number
}

export interface TimedOp {
  readonly label: string
  readonly kind: string
  readonly lane: Lane
  /** Undefined: all rows. */
  readonly part: number | undefined
  /** From the start of the step. */
  readonly startSeconds: number
  readonly endSeconds: number
  /** Alone on the device. */
  readonly soloSeconds: number
  /** On the chain of ops that the step's time is the length of. */
  readonly isCritical: boolean
}

export interface Timeline {
  readonly seconds: number
  /** In program order. */
  readonly ops: readonly TimedOp[]
  /** Time during which a lane ran something. */
  readonly busySeconds: Readonly<Record<Lane, number>>
}

/** The timeline of a step; `bounds`: part boundaries, [parts + 1]. */
export function predictTimeline(
  hardware: Hardware,
  program: Program,
  shape: StepShape,
  bounds: readonly number[],
  shares: LaneShares,
): Timeline {
  const costs = programCosts(hardware, program, shape, bounds, shares.network)
  const run = runLanes(hardware, program, costs, shares)
  const critical = criticalOps(run)
  const busySeconds = { compute: 0, memory: 0, network: 0 }
  const ops = program.ops.map((op, index): TimedOp => {
    busySeconds[op.lane] += run.end[index]! - run.start[index]!
    const partial = [...op.inputs, ...op.outputs].find(
      (view) => view && hasParts(program.buffers[view.buffer]!),
    )
    return {
      label: op.label,
      kind: op.kind,
      lane: op.lane,
      part: partial?.part,
      startSeconds: run.start[index]!,
      endSeconds: run.end[index]!,
      soloSeconds: costs[index]!.seconds,
      isCritical: critical.has(index),
    }
  })
  return { seconds: Math.max(run.seconds, hostSeconds(hardware, costs)), ops, busySeconds }
}

/** Seconds of a step of the whole model; `layered` has its schedule's passes behind it. */
export function predictSeconds(
  hardware: Hardware,
  layered: LayeredProgram,
  shape: StepShape,
  bounds: readonly number[],
  shares: LaneShares,
): number {
  const secondsOf = (program: Program) => {
    const costs = programCosts(hardware, program, shape, bounds, shares.network)
    const { seconds } = runLanes(hardware, program, costs, shares)
    return Math.max(seconds, hostSeconds(hardware, costs))
  }
  return extrapolate(layered, secondsOf(layered.short), secondsOf(layered.long))
}

/** Until the host has enqueued every kernel. */
function hostSeconds({ hostSecondsPerOp }: Hardware, costs: readonly OpCost[]): number {
  return hostSecondsPerOp * costs.reduce((sum, { launches = 1 }) => sum + launches, 0)
}

interface LaneRun {
  readonly seconds: number
  readonly start: Float64Array
  readonly end: Float64Array
  /** The op whose end let each op start; -1: none. */
  readonly cause: Int32Array
}

/** One part has nothing to run beside: its ops follow each other. */
function runInTurn(costs: readonly OpCost[]): LaneRun {
  const [start, end] = [new Float64Array(costs.length), new Float64Array(costs.length)]
  const cause = Int32Array.from(costs, (_, index) => index - 1)
  let now = 0
  costs.forEach((cost, index) => {
    start[index] = now
    now += cost.seconds
    end[index] = now
  })
  return { seconds: now, start, end, cause }
}

function runLanes(
  hardware: Hardware,
  program: Program,
  costs: readonly OpCost[],
  shares: LaneShares,
): LaneRun {
  if (program.parts === 1 || !hardware.lanesOverlap) return runInTurn(costs)
  const { ops } = program
  const queues = LANES.map((lane) => ops.flatMap((op, index) => (op.lane === lane ? [index] : [])))
  const start = new Float64Array(ops.length)
  const end = new Float64Array(ops.length).fill(-1)
  const cause = new Int32Array(ops.length).fill(-1)
  const heads = [0, 0, 0]
  const active = [-1, -1, -1]
  const left = [0, 0, 0]
  let now = 0
  for (let done = 0; done < ops.length; ) {
    for (let lane = 0; lane < 3; lane++) {
      if (active[lane]! >= 0) continue
      const index = queues[lane]![heads[lane]!]
      if (index === undefined) continue
      let last = heads[lane]! > 0 ? queues[lane]![heads[lane]! - 1]! : -1
      let isReady = true
      for (const wait of ops[index]!.waits) {
        if (end[wait]! < 0) isReady = false
        else if (last < 0 || end[wait]! > end[last]!) last = wait
      }
      if (!isReady) continue
      active[lane] = index
      left[lane] = costs[index]!.seconds
      start[index] = now
      cause[index] = last
      heads[lane]!++
    }
    const rates = ratesOf(hardware, active, costs, shares)
    let step = Infinity
    for (let lane = 0; lane < 3; lane++)
      if (active[lane]! >= 0) step = Math.min(step, left[lane]! / rates[lane]!)
    now += step
    for (let lane = 0; lane < 3; lane++) {
      const index = active[lane]!
      if (index < 0) continue
      left[lane]! -= step * rates[lane]!
      // What is left of an op that ends now is rounding.
      if (left[lane]! > costs[index]!.seconds * 1e-9) continue
      active[lane] = -1
      end[index] = now
      done++
    }
  }
  return { seconds: now, start, end, cause }
}

/** Rates of the active ops of the lanes compute, memory, network; 1: as fast as alone. */
function ratesOf(
  hardware: Hardware,
  active: readonly number[],
  costs: readonly OpCost[],
  shares: LaneShares,
): [number, number, number] {
  const { interference } = hardware
  const [compute, memory, network] = active as [number, number, number]
  const networkShare = network >= 0 ? shares.network : 0
  const others = networkShare + (memory >= 0 ? shares.memory : 0)
  const memoryShare = compute >= 0 ? shares.memory : 1 - networkShare
  return [
    compute < 0 || others === 0 ? 1 : computeRate(hardware, costs[compute]!, 1 - others),
    memory < 0 ? 1 : rateOfShare(interference.memory, memoryShare, costs[memory]!.computeShare),
    performanceOf(interference.network, shares.network),
  ]
}

function computeRate(hardware: Hardware, cost: OpCost, share: number): number {
  if (cost.secondsWith === undefined) {
    return rateOfShare(hardware.interference.memory, share, cost.computeShare)
  }
  return cost.seconds / cost.secondsWith(Math.max(1, Math.round(hardware.units * share)))
}

/** What of an op is arithmetic gets its share and no more; the rest is bound by memory. */
function rateOfShare(
  table: Hardware['interference']['memory'],
  share: number,
  computeShare: number,
): number {
  return 1 / (computeShare / share + (1 - computeShare) / performanceOf(table, share))
}

function criticalOps({ seconds, end, cause }: LaneRun): Set<number> {
  const critical = new Set<number>()
  let index = end.indexOf(seconds)
  while (index >= 0) {
    critical.add(index)
    index = cause[index]!
  }
  return critical
}
