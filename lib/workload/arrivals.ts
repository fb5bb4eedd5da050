/** Arrival processes: when requests come, whether or not those before them have been answered. */

import type { Random } from './random.ts'

export type ArrivalName = 'poisson' | 'gamma' | 'constant'

export interface ArrivalProcess {
  readonly name: ArrivalName
  readonly summary: string
  /** Milliseconds from an arrival at `nowMs` to the next one; `rate`: mean, requests per second. */
  readonly start: (random: Random, rate: number) => (nowMs: number) => number
}

/** BurstGPT (Wang et al., 2024): burstiness changes from minute to minute. */
const BURST_WINDOW_MS = 60_000
const BURST_SHAPES = [0.25, 0.5] as const

export const ARRIVAL_PROCESSES: readonly ArrivalProcess[] = [
  {
    name: 'poisson',
    summary: 'independent arrivals',
    start: (random, rate) => () => (1000 / rate) * random.exponential(),
  },
  {
    name: 'gamma',
    summary: 'bursts as in BurstGPT: shape 0.25 to 0.5, drawn again every 60 s',
    start: (random, rate) => {
      let window = -1
      let shape = 1
      return (nowMs) => {
        const current = Math.floor(nowMs / BURST_WINDOW_MS)
        if (current !== window) {
          window = current
          shape = BURST_SHAPES[0] + (BURST_SHAPES[1] - BURST_SHAPES[0]) * random.uniform()
        }
        return (1000 / rate) * random.gamma(shape)
      }
    },
  },
  {
    name: 'constant',
    summary: 'equal distances',
    start: (_, rate) => () => 1000 / rate,
  },
]
