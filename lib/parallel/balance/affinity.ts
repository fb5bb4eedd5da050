/**
 * Affinity placement, after ExFlow (https://arxiv.org/abs/2401.08383): tokens that choose expert a in
 * one layer tend to choose the same few experts in the next. Experts that follow each other are put on
 * one rank: layer by layer, the strongest ties first, then swaps of two experts as long as they help.
 * Pure.
 */

import type { ExpertTrace } from './trace.ts'

/** followers[l][a][b]: tokens of a trace that chose a in layer l and b in layer l + 1. */
export type Followers = readonly (readonly (readonly number[])[])[]

/** placement[l][e]: the rank of expert e of layer l; equally many on every rank, or the last has fewer. */
export type Placement = readonly (readonly number[])[]

/** Counts what followed what in the tokens of a trace. */
export function countFollowers({ layers, experts, choices, chosen }: ExpertTrace): number[][][] {
  const counts = Array.from({ length: layers - 1 }, () =>
    Array.from({ length: experts }, () => new Array<number>(experts).fill(0)),
  )
  const row = layers * choices
  for (let at = 0; at < chosen.length; at++) {
    const layer = Math.floor((at % row) / choices)
    const expert = chosen[at]!
    if (expert < 0 || layer + 1 === layers) continue
    const next = at - (at % choices) + choices
    for (const follower of chosen.subarray(next, next + choices))
      if (follower >= 0) counts[layer]![expert]![follower]!++
  }
  return counts
}

/** Experts of each layer on `ranks` ranks, at most ceil(experts / ranks) each. */
export function placeByAffinity(followers: Followers, experts: number, ranks: number): Placement {
  const perRank = Math.ceil(experts / ranks)
  const placement: number[][] = [
    Array.from({ length: experts }, (_, expert) => Math.floor(expert / perRank)),
  ]
  for (const counts of followers) {
    const ties = tiesToRanks(counts, placement.at(-1)!, ranks)
    placement.push(improveBySwaps(matchGreedily(ties, perRank, ranks), ties))
  }
  return placement
}

/** ties[b][r]: tokens that come to expert b from an expert on rank r. */
function tiesToRanks(
  counts: readonly (readonly number[])[],
  previous: readonly number[],
  ranks: number,
): number[][] {
  const ties = counts.map(() => new Array<number>(ranks).fill(0))
  counts.forEach((row, a) => {
    row.forEach((count, b) => {
      ties[b]![previous[a]!]! += count
    })
  })
  return ties
}

function matchGreedily(ties: readonly number[][], perRank: number, ranks: number): number[] {
  const pairs = ties.flatMap((row, expert) => row.map((tie, rank) => ({ expert, rank, tie })))
  pairs.sort((a, b) => b.tie - a.tie || a.expert - b.expert || a.rank - b.rank)
  const placed = new Array<number>(ties.length).fill(-1)
  const room = new Array<number>(ranks).fill(perRank)
  for (const { expert, rank } of pairs) {
    if (placed[expert] !== -1 || room[rank] === 0) continue
    placed[expert] = rank
    room[rank]!--
  }
  return placed
}

/** Every swap keeps more tokens at home, so it ends. */
function improveBySwaps(placed: number[], ties: readonly number[][]): number[] {
  const gain = (a: number, b: number) =>
    ties[a]![placed[b]!]! + ties[b]![placed[a]!]! - ties[a]![placed[a]!]! - ties[b]![placed[b]!]!
  for (let improved = true; improved; ) {
    improved = false
    for (let a = 0; a < placed.length; a++) {
      for (let b = a + 1; b < placed.length; b++) {
        if (gain(a, b) <= 0) continue
        ;[placed[a], placed[b]] = [placed[b]!, placed[a]!]
        improved = true
      }
    }
  }
  return placed
}

/** Share of the steps from layer to layer that stay on a rank. */
export function localShare(followers: Followers, placement: Placement): number {
  let local = 0
  let total = 0
  followers.forEach((counts, layer) => {
    counts.forEach((row, a) => {
      row.forEach((count, b) => {
        total += count
        if (placement[layer]![a] === placement[layer + 1]![b]) local += count
      })
    })
  })
  return total === 0 ? 1 : local / total
}
