/** Balancing of experts: EPLB, least-loaded expert parallelism, affinity placement. */

import { describe, expect, it } from 'vitest'
import {
  countFollowers,
  localShare,
  type Placement,
  placeByAffinity,
} from '../lib/parallel/balance/affinity.ts'
import { balanceExperts, imbalance, rankLoads } from '../lib/parallel/balance/eplb.ts'
import { loadsAfter, planLeastLoaded, smallestMove } from '../lib/parallel/balance/least-loaded.ts'
import { createRandom } from './support/random.ts'

/** Loads of `experts` experts by Zipf's law in random order. */
function zipfLoads(seed: number, experts: number, exponent: number, total: number): number[] {
  const random = createRandom(seed)
  const weights = Array.from({ length: experts }, (_, rank) => (rank + 1) ** -exponent)
  for (let i = experts - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[weights[i], weights[j]] = [weights[j]!, weights[i]!]
  }
  const sum = weights.reduce((a, b) => a + b)
  return weights.map((weight) => Math.round((weight / sum) * total))
}

describe('EPLB', () => {
  // The example of https://github.com/deepseek-ai/EPLB (README): two layers of 12 experts in 4
  // groups, 16 slots on 2 nodes of 4 GPUs.
  it('places the published example as published', () => {
    const layout = { slots: 16, ranks: 8, nodes: 2, groups: 4 }
    const layers = [
      [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
      [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    expect(layers.map((loads) => balanceExperts(loads, layout))).toEqual([
      [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
      [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ])
  })

  // DeepSeek-R1, 256 experts at 36 ranks: the hottest rank had 2.56 times the mean, and 1.115 times
  // with 288 slots (TensorRT-LLM, examples/ep_load_balancer/README.md). Loads of that skew here, 32 ranks.
  it('brings 2.5 times the mean under 1.12 with 32 extra slots at 32 ranks', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const loads = zipfLoads(seed, 256, 0.7, 32 * 1024)
      const home = loads.map((_, expert) => expert)
      const before = imbalance(rankLoads(loads, home, 32))
      const layout = { slots: 288, ranks: 32, nodes: 1, groups: 1 }
      const placed = balanceExperts(loads, layout)
      expect(new Set(placed).size).toBe(256)
      expect(before).toBeGreaterThan(2.5)
      expect(imbalance(rankLoads(loads, placed, 32))).toBeLessThan(1.12)
    }
  })

  it('keeps groups on one node where they divide over nodes', () => {
    const loads = zipfLoads(3, 64, 1, 100_000)
    const placed = balanceExperts(loads, { slots: 96, ranks: 8, nodes: 2, groups: 8 })
    const nodesOf = Array.from({ length: 8 }, (_, group) => {
      const slots = placed.flatMap((expert, slot) => (expert >> 3 === group ? [slot] : []))
      return new Set(slots.map((slot) => Math.floor(slot / 48))).size
    })
    expect(nodesOf).toEqual(new Array(8).fill(1))
  })

  it('refuses slots that do not divide over the ranks', () => {
    expect(() => balanceExperts([1, 2, 3], { slots: 4, ranks: 3, nodes: 1, groups: 1 })).toThrow(
      'multiple of the ranks',
    )
  })
})

describe('least-loaded expert parallelism', () => {
  const ranks = 8
  const homes = Array.from({ length: 128 }, (_, expert) => expert >> 4)
  // bf16 weights on H100s: 990 TFLOP/s dense, 450 GB/s of NVLink in a direction.
  const smallest = smallestMove({
    bytesPerParameter: 2,
    flopsPerSecond: 990e12,
    bytesPerSecond: 450e9,
  })

  it('keeps max/mean within 1.05 on Zipf skew at prefill sizes', () => {
    expect(smallest).toBe(2200)
    for (let seed = 1; seed <= 20; seed++) {
      const loads = zipfLoads(seed, 128, 1.2, 65_536 * 8)
      const moves = planLeastLoaded(loads, homes, { ranks, smallest })
      const after = loadsAfter(loads, homes, ranks, moves)
      expect(imbalance(after)).toBeLessThanOrEqual(1.05)
      expect(imbalance(loadsAfter(loads, homes, ranks, []))).toBeGreaterThan(1.3)
      for (const { expert, from, to, rows } of moves) {
        expect(rows).toBeGreaterThanOrEqual(smallest)
        expect(from).toBe(homes[expert])
        expect(to).not.toBe(from)
      }
      for (const [expert, load] of loads.entries()) {
        const moved = moves.filter((move) => move.expert === expert)
        expect(moved.reduce((sum, { rows }) => sum + rows, 0)).toBeLessThanOrEqual(load)
      }
    }
  })

  it('moves nothing at decode sizes', () => {
    for (let seed = 1; seed <= 20; seed++) {
      expect(
        planLeastLoaded(zipfLoads(seed, 128, 1.2, 256 * 8), homes, { ranks, smallest }),
      ).toEqual([])
    }
  })
})

describe('affinity placement', () => {
  it('finds chains of experts that follow each other', () => {
    const random = createRandom(5)
    const [layers, experts, ranks] = [6, 32, 4]
    // In each layer a hidden permutation says what follows; one choice in five is any expert.
    const orders = Array.from({ length: layers }, () => {
      const order = Array.from({ length: experts }, (_, expert) => expert)
      for (let i = experts - 1; i > 0; i--) {
        const j = random.int(0, i)
        ;[order[i], order[j]] = [order[j]!, order[i]!]
      }
      return order
    })
    const trace = Array.from({ length: 4000 }, () => {
      const chain = random.int(0, experts - 1)
      return orders.map((order) => [
        random.next() < 0.2 ? random.int(0, experts - 1) : order[chain]!,
      ])
    })
    const chosen = Int16Array.from(trace.flat(2))
    const followers = countFollowers({ layers, experts, choices: 1, chosen })
    const placement = placeByAffinity(followers, experts, ranks)
    for (const layer of placement) {
      for (let rank = 0; rank < ranks; rank++) {
        expect(layer.filter((other) => other === rank)).toHaveLength(experts / ranks)
      }
    }
    const contiguous: Placement = placement.map(() =>
      Array.from({ length: experts }, (_, expert) => Math.floor(expert / (experts / ranks))),
    )
    expect(localShare(followers, contiguous)).toBeLessThan(0.35)
    expect(localShare(followers, placement)).toBeGreaterThan(0.65)
  })
})
