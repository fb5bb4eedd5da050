/**
 * ExpertBalancer: counts of a running engine in, expert tables and copies of experts out. After every
 * `period` steps a policy plans each layer anew from what was chosen in them; the way there is a few
 * copies a step, so that no step is held up. The plan is a function of the counts alone: whoever has
 * the same counts has the same tables, and a hash goes with them for the ranks to compare.
 */

import { imbalance } from './eplb.ts'
import { planEplb } from './eplb-placement.ts'
import { placeLeastLoaded } from './least-loaded-placement.ts'
import {
  buildTable,
  EMPTY,
  evenShares,
  hashTable,
  homeSlots,
  type Placement,
  positionLoads,
  type SlotCopy,
  type SlotLayout,
  SlotMoves,
  type Slots,
} from './slots.ts'

/** `count`: loads are counted, experts stay. */
export const BALANCE_POLICIES = ['count', 'eplb', 'least-loaded'] as const
export type BalancePolicy = (typeof BALANCE_POLICIES)[number]

export interface BalancerOptions {
  readonly layout: SlotLayout
  /** By layer with experts: what the slots are loaded with. */
  readonly tables: readonly Slots[]
  readonly policy: BalancePolicy
  /** Steps from plan to plan. */
  readonly period: number
  /** Experts of one layer that a step copies at most. */
  readonly copiesPerStep: number
  /** Rows of an expert in a step from which computing them elsewhere pays; least-loaded only. */
  readonly smallestMove: number
}

/** What one step carries. */
export interface ExpertUpdate {
  readonly asksCounts: boolean
  readonly copies: readonly (SlotCopy & { readonly table: number })[]
  /** Tables that change, [experts · EXPERT_WAYS] slots each. */
  readonly tables: readonly { readonly number: number; readonly slots: Int32Array }[]
  /** Of all tables afterwards. */
  readonly hash: number
}

export interface ExpertLoads {
  readonly layout: SlotLayout
  readonly policy: BalancePolicy
  /** By layer, then expert: choices since the start, as far as they have been counted. */
  readonly experts: readonly (readonly number[])[]
  /** By layer, then position: rows of the last period. */
  readonly positions: readonly (readonly number[])[]
  /** By layer: the largest of them by their mean; 1 where nothing was counted. */
  readonly imbalance: readonly number[]
  /** By layer: slots that serve rows beyond those experts were loaded into. */
  readonly servedAway: readonly number[]
  /** Periods that were planned for. */
  readonly plans: number
  /** Experts copied to another slot, and copies that are still to come. */
  readonly movedSlots: number
  readonly layersMoving: number
}

/** A plan is worth its copies only if it lowers largest / mean by as much, beside what is chance. */
const SMALLEST_GAIN = 0.02

/** One layer. */
interface Layer {
  readonly homes: Slots
  placement: Placement
  table: Int32Array
  hash: number
  moves: SlotMoves | undefined
  target: Placement | undefined
  total: number[]
  lastPositions: number[]
}

export class ExpertBalancer {
  readonly #options: BalancerOptions
  readonly #layers: Layer[]
  readonly #changed = new Set<number>()
  #steps = 0
  #plans = 0
  #movedSlots = 0
  #loads: ExpertLoads | undefined

  constructor(options: BalancerOptions) {
    this.#options = options
    const { layout } = options
    const loaded = buildTable(evenShares(homeSlots(layout)), layout.experts)
    this.#layers = options.tables.map((slots, number) => {
      const placement = evenShares(slots)
      const table = buildTable(placement, layout.experts)
      // The runtime begins with experts in order.
      if (table.some((slot, i) => slot !== loaded[i])) this.#changed.add(number)
      return {
        homes: slots,
        placement,
        table,
        hash: hashTable(number, table),
        moves: undefined,
        target: undefined,
        total: new Array<number>(layout.experts).fill(0),
        lastPositions: new Array<number>(layout.positions).fill(0),
      }
    })
  }

  /** For the step that is submitted now; undefined: nothing. */
  nextStep(): ExpertUpdate | undefined {
    const asksCounts = ++this.#steps % this.#options.period === 0
    const copies = this.#nextCopies()
    if (this.#changed.size === 0 && copies.length === 0 && !asksCounts) return undefined
    const tables = [...this.#changed].map((number) => ({
      number,
      slots: this.#layers[number]!.table,
    }))
    this.#changed.clear()
    const hash = this.#layers.reduce((all, layer) => all ^ layer.hash, 0)
    return { asksCounts, copies, tables, hash }
  }

  /** [tables · experts] choices of each attention group, since they were last asked for. */
  record(groups: readonly Int32Array[]): void {
    const { layout, policy } = this.#options
    this.#layers.forEach((layer, number) => {
      const loads = layer.total.map((_, expert) =>
        groups.reduce((sum, counts) => sum + counts[number * layout.experts + expert]!, 0),
      )
      loads.forEach((load, expert) => {
        layer.total[expert]! += load
      })
      layer.lastPositions = positionLoads(loads, layer.placement, layout)
      if (policy !== 'count' && layer.moves === undefined) this.#plan(layer, number, loads)
    })
    this.#plans++
    this.#loads = undefined
  }

  /** Made anew only when something has changed: it is asked for with every statistic. */
  loads(): ExpertLoads {
    this.#loads ??= this.#readLoads()
    return this.#loads
  }

  #readLoads(): ExpertLoads {
    const { layout, policy } = this.#options
    return {
      layout,
      policy,
      experts: this.#layers.map(({ total }) => [...total]),
      positions: this.#layers.map(({ lastPositions }) => [...lastPositions]),
      imbalance: this.#layers.map(({ lastPositions }) => imbalance(lastPositions)),
      servedAway: this.#layers.map((layer) => countAway(layer.placement, layer.homes)),
      plans: this.#plans,
      movedSlots: this.#movedSlots,
      layersMoving: this.#layers.filter(({ moves }) => moves !== undefined).length,
    }
  }

  #plan(layer: Layer, number: number, loads: readonly number[]): void {
    if (loads.every((load) => load === 0)) return
    const target = this.#targetOf(layer, loads)
    const { layout } = this.#options
    const worth = (placement: Placement) => imbalance(positionLoads(loads, placement, layout))
    const gain = worth(layer.placement) - worth(target)
    if (gain < SMALLEST_GAIN + noiseOf(loads, layout) && !isRelease(target, layer)) return
    layer.target = target
    layer.moves = new SlotMoves(layer.placement.slots, target.slots)
    if (layer.moves.isDone) this.#arrive(layer, number)
  }

  #targetOf({ placement, homes }: Layer, loads: readonly number[]): Placement {
    const { layout, policy, period, smallestMove } = this.#options
    if (policy === 'eplb') return planEplb(loads, placement.slots, layout)
    const perStep = loads.map((load) => load / period)
    return placeLeastLoaded(perStep, placement.slots, homes, smallestMove, layout)
  }

  /** The next copies of the layers that move, in their order. */
  #nextCopies(): (SlotCopy & { table: number })[] {
    const copies: (SlotCopy & { table: number })[] = []
    this.#layers.forEach((layer, table) => {
      const left = this.#options.copiesPerStep - copies.length
      if (layer.moves === undefined || left <= 0) return
      const next = layer.moves.next(left)
      for (const copy of next) copies.push({ ...copy, table })
      this.#movedSlots += next.length
      this.#loads = undefined
      if (layer.moves.isDone) this.#arrive(layer, table)
      else this.#place(layer, table, evenShares(layer.moves.slots))
    })
    return copies
  }

  #arrive(layer: Layer, number: number): void {
    const { shares } = layer.target!
    this.#place(layer, number, { slots: layer.moves!.slots, shares })
    layer.moves = undefined
    layer.target = undefined
  }

  #place(layer: Layer, number: number, placement: Placement): void {
    layer.placement = placement
    layer.table = buildTable(placement, this.#options.layout.experts)
    layer.hash = hashTable(number, layer.table)
    this.#changed.add(number)
  }
}

/** How far the rows of a position stray from their mean by chance, by the mean. */
function noiseOf(loads: readonly number[], { positions }: SlotLayout): number {
  return Math.sqrt(positions / loads.reduce((sum, load) => sum + load, 0))
}

/** Rows that were computed elsewhere go home: no gain, and no copies either. */
function isRelease(target: Placement, { placement, homes }: Layer): boolean {
  return countAway(placement, homes) > 0 && countAway(target, homes) === 0
}

/** Slots that serve rows and were loaded empty. */
function countAway({ slots, shares }: Placement, homes: Slots): number {
  return slots.filter(
    (expert, slot) => expert !== EMPTY && shares[slot]! > 0 && homes[slot] === EMPTY,
  ).length
}
