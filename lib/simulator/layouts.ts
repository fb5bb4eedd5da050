/**
 * Layout search: of all ways to put a model on a number of devices, the one that serves most requests
 * within the targets (what APEX does, https://arxiv.org/abs/2411.17651): tensor parallel degree times
 * replicas, experts split or dealt over the ranks, prefill and decode together or apart.
 */

import { EngineError } from '../errors.ts'
import type { LayeredProgram } from '../program/layered.ts'
import { kvCapacity, type Simulation, type SimulationOptions, simulate } from './simulate.ts'

export interface Layout {
  /** Ranks of an instance. */
  readonly tensorParallel: number
  readonly instances: number
  readonly prefillInstances: number
  readonly expertsOverRanks: boolean
}

export interface LayoutSearch extends Omit<SimulationOptions, 'deployment'> {
  readonly devices: number
  readonly hasExperts: boolean
  /** Undefined: the model does not split so. */
  readonly programOf: (
    tensorParallel: number,
    expertsOverRanks: boolean,
  ) => LayeredProgram | undefined
}

export interface LayoutResult {
  readonly layout: Layout
  readonly simulation: Simulation
}

export function describeLayout(layout: Layout): string {
  const { tensorParallel, instances, prefillInstances, expertsOverRanks } = layout
  const experts = expertsOverRanks ? ', experts over ranks' : ''
  if (prefillInstances === 0) return `tp ${tensorParallel} × ${instances}${experts}`
  return `tp ${tensorParallel} × (${prefillInstances} prefill + ${instances} decode)${experts}`
}

/** Best first. ERR_OUT_OF_MEMORY when the model fits in no layout. */
export function searchLayouts(search: LayoutSearch): LayoutResult[] {
  const results: LayoutResult[] = []
  for (const expertsOverRanks of search.hasExperts ? [false, true] : [false]) {
    for (let degree = 1; degree <= search.devices; degree *= 2) {
      if (search.devices % degree !== 0 || (expertsOverRanks && degree === 1)) continue
      const program = search.programOf(degree, expertsOverRanks)
      if (program === undefined || kvCapacity(search.hardware, program) < longest(search)) continue
      for (const split of splitsOf(search.devices / degree)) {
        const layout: Layout = { tensorParallel: degree, expertsOverRanks, ...split }
        const simulation = simulate({ ...search, deployment: { program, ...split } })
        results.push({ layout, simulation })
      }
    }
  }
  if (results.length === 0) {
    throw new EngineError(
      'ERR_OUT_OF_MEMORY',
      `the model and its longest request fit in no layout of ${search.devices} × ${search.hardware.title}`,
    )
  }
  return results.sort(isBetter)
}

/** All instances alike, or the fewest to most that compute prompts. */
function splitsOf(total: number): Pick<Layout, 'instances' | 'prefillInstances'>[] {
  const splits = [{ instances: total, prefillInstances: 0 }]
  for (let prefill = 1; prefill < total; prefill *= 2) {
    splits.push({ instances: total - prefill, prefillInstances: prefill })
  }
  return splits
}

function longest({ requests }: LayoutSearch): number {
  return requests.reduce(
    (most, { promptTokens, outputTokens }) => Math.max(most, promptTokens + outputTokens),
    0,
  )
}

/** More goodput; where it is equal to 1 %, the shorter tail. */
function isBetter(a: LayoutResult, b: LayoutResult): number {
  const [x, y] = [a.simulation.metrics, b.simulation.metrics]
  if (Math.abs(x.goodput - y.goodput) > 0.01 * Math.max(x.goodput, y.goodput)) {
    return y.goodput - x.goodput
  }
  return x.totalMs.p99 - y.totalMs.p99
}
