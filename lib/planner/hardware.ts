/**
 * Hardware: what the cost model knows of a device and of the links between devices. Rates are those
 * that good kernels reach, not the data sheet's. presets.ts has published ones with their sources;
 * a tune file, measured by `nanoweave bench --tune`, has the same fields and replaces them.
 */

import { EngineError } from '../errors.ts'

/** One thread block's share of a matmul. */
export interface MatmulTile {
  readonly rows: number
  readonly cols: number
  /** Of the unit's best rate: a small tile reloads its operands more often. */
  readonly efficiency: number
}

export interface Interconnect {
  readonly kind: 'nvlink' | 'pcie' | 'memory'
  /** Of a collective with next to no data. */
  readonly latencySeconds: number
  /** Bus bandwidth of a large all-reduce, as nccl-tests counts it: 2·(W-1)/W·bytes / seconds. */
  readonly busBytesPerSecond: number
  /** Reductions and broadcasts in the switch (NVLink SHARP): seconds = latency + bytes / rate. */
  readonly multicast?: {
    readonly latencySeconds: number
    readonly allReduceBytesPerSecond: number
    readonly gatherBytesPerSecond: number
  }
}

/** Points [R, P], ascending from [0, 0] to [1, 1]: a share R of the device gives a share P of the rate. */
export type ShareTable = readonly (readonly [share: number, speed: number])[]

/** What a kernel beside a matmul costs it, after NanoFlow (https://arxiv.org/abs/2408.12757), §4.1.1. */
export interface Interference {
  /** Attention and other kernels bound by memory. */
  readonly memory: ShareTable
  /** Collectives. */
  readonly network: ShareTable
}

export interface Hardware {
  readonly name: string
  readonly title: string
  /** Streaming multiprocessors of a device, or threads of a CPU rank. */
  readonly units: number
  /** Multiplications and additions of the whole device while every unit is busy, per second. */
  readonly matmulFlopPerSecond: { readonly half: number; readonly f32: number }
  readonly attentionFlopPerSecond: number
  /** Reached by kernels that stream, bytes read plus written. */
  readonly memoryBytesPerSecond: number
  /** Of it, what decode attention reaches over a paged cache. */
  readonly pagedEfficiency: number
  readonly memoryBytes: number
  readonly tiles: readonly MatmulTile[]
  /** Filling and draining a tile's pipeline. */
  readonly tileOverheadSeconds: number
  /** From the end of a kernel to the start of the next one of the same lane. */
  readonly launchSeconds: number
  /** Of the host thread, to enqueue one op: a step takes no less than all its ops. */
  readonly hostSecondsPerOp: number
  readonly interconnect: Interconnect
  readonly interference: Interference
  /** False: a rank has one thread of execution, so lanes take turns. */
  readonly lanesOverlap: boolean
  /** Where the numbers come from. */
  readonly sources: readonly string[]
}

/** Why a rank without lanes of its own gains nothing by overlap; continues a sentence about it. */
export const IN_TURN =
  'runs its lanes in turn, on one thread of execution: it never multiplies and reduces at once'

/** P of a share R, linear between the table's points. */
export function performanceOf(table: ShareTable, share: number): number {
  if (share <= 0) return 0
  for (let i = 1; i < table.length; i++) {
    const [r0, p0] = table[i - 1]!
    const [r1, p1] = table[i]!
    if (share <= r1) return p0 + ((p1 - p0) * (share - r0)) / (r1 - r0)
  }
  return 1
}

const POSITIVE = [
  'units',
  'attentionFlopPerSecond',
  'memoryBytesPerSecond',
  'pagedEfficiency',
  'memoryBytes',
] as const
const NOT_NEGATIVE = ['tileOverheadSeconds', 'launchSeconds', 'hostSecondsPerOp'] as const

/** Reads a tune file's text; ERR_USAGE says which field is missing or no number. */
export function parseHardware(text: string, file: string): Hardware {
  const fail = (what: string): never => {
    throw new EngineError(
      'ERR_USAGE',
      `${file}: ${what}; make the file with nanoweave bench --tune, or name a preset`,
    )
  }
  const require = (condition: boolean, what: string): void => {
    if (!condition) fail(what)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return fail('is not JSON')
  }
  require(isObject(value), 'is no object')
  const hardware = value as Hardware
  for (const name of ['name', 'title'] as const)
    require(typeof hardware[name] === 'string', `${name} must be text`)
  for (const name of POSITIVE) require(isRate(hardware[name]), `${name} must be a positive number`)
  for (const name of NOT_NEGATIVE)
    require(isTime(hardware[name]), `${name} must be a number of seconds`)
  require(typeof hardware.lanesOverlap === 'boolean', 'lanesOverlap must be true or false')
  const { matmulFlopPerSecond, tiles, interconnect, interference, sources } = hardware
  require(isObject(matmulFlopPerSecond) &&
    isRate(matmulFlopPerSecond.half) &&
    isRate(matmulFlopPerSecond.f32), 'matmulFlopPerSecond needs half and f32')
  require(Array.isArray(tiles) &&
    tiles.length > 0 &&
    tiles.every(
      (tile) => isRate(tile?.rows) && isRate(tile?.cols) && isRate(tile?.efficiency),
    ), 'tiles must list rows, cols and efficiency')
  require(isObject(interconnect) &&
    isTime(interconnect.latencySeconds) &&
    isRate(
      interconnect.busBytesPerSecond,
    ), 'interconnect needs latencySeconds and busBytesPerSecond')
  const { multicast } = interconnect
  require(multicast === undefined ||
    (isObject(multicast) &&
      isTime(multicast.latencySeconds) &&
      isRate(multicast.allReduceBytesPerSecond) &&
      isRate(
        multicast.gatherBytesPerSecond,
      )), 'interconnect.multicast needs a latency and two rates')
  require(isObject(interference) &&
    isTable(interference.memory) &&
    isTable(
      interference.network,
    ), 'interference needs tables memory and network that ascend from [0, 0] to [1, 1]')
  require(Array.isArray(sources), 'sources must be a list')
  return hardware
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isRate(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value > 0
}

function isTime(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0
}

function isTable(value: unknown): value is ShareTable {
  if (!Array.isArray(value) || value.length < 2) return false
  const pairs = value.every(
    (point) => Array.isArray(point) && point.length === 2 && point.every(isTime),
  )
  if (!pairs) return false
  const points = value as ShareTable
  const [first, last] = [points[0]!, points.at(-1)!]
  const ascends = points.every(
    ([share, speed], i) => i === 0 || (share > points[i - 1]![0] && speed >= points[i - 1]![1]),
  )
  return ascends && first[0] === 0 && first[1] === 0 && last[0] === 1 && last[1] === 1
}
