/**
 * EPLB, the load balancer for expert parallelism published with DeepSeek-V3
 * (https://arxiv.org/abs/2412.19437 §3.4, https://github.com/deepseek-ai/EPLB): heavy experts get
 * replicas in extra slots, and slots are packed on ranks so that loads are even. Where groups of experts
 * divide over nodes, a group stays on one node (hierarchical); else nodes are disregarded (global).
 * Pure: the same plan on every rank from the same loads.
 */

import { EngineError } from '../../errors.ts'

export interface EplbLayout {
  /** Physical experts over all ranks, replicas included; a multiple of `ranks`. */
  readonly slots: number
  readonly ranks: number
  readonly nodes: number
  /** Of neighbouring experts, as routing sees them. */
  readonly groups: number
}

/** Expert of each slot; slots [r · slots / ranks, …) are rank r's. */
export type SlotExperts = readonly number[]

/** One layer's placement from the load of each expert, tokens. */
export function balanceExperts(loads: readonly number[], layout: EplbLayout): SlotExperts {
  requireLayout(loads.length, layout)
  const hierarchical = layout.groups % layout.nodes === 0
  const { slots, ranks, nodes, groups } = hierarchical ? layout : { ...layout, nodes: 1, groups: 1 }
  const nodeOf = packNodes(loads, groups, nodes)
  const placed: number[] = []
  for (let node = 0; node < nodes; node++) {
    const experts = nodeOf[node]!
    const replicas = replicate(
      experts.map((expert) => loads[expert]!),
      slots / nodes,
    )
    for (const rank of packEvenly(replicas.loads, ranks / nodes)) {
      for (const slot of rank) placed.push(experts[replicas.expertOf[slot]!]!)
    }
  }
  return placed
}

function requireLayout(experts: number, { slots, ranks, nodes, groups }: EplbLayout): void {
  const fits =
    slots >= experts && slots % ranks === 0 && ranks % nodes === 0 && experts % groups === 0
  if (fits) return
  throw new EngineError(
    'ERR_USAGE',
    `${experts} experts in ${groups} groups do not fit ${slots} slots of ${ranks} ranks on ${nodes} nodes: ` +
      'slots must be a multiple of the ranks and no fewer than the experts, ranks a multiple of the nodes',
  )
}

/** The experts of each node: whole groups, of even load. */
function packNodes(loads: readonly number[], groups: number, nodes: number): number[][] {
  const size = loads.length / groups
  const groupLoads = Array.from({ length: groups }, (_, group) =>
    sum(loads.slice(group * size, (group + 1) * size)),
  )
  return packEvenly(groupLoads, nodes).map((members) =>
    members.flatMap((group) => Array.from({ length: size }, (_, i) => group * size + i)),
  )
}

/** Every further slot goes to the expert with the most load per replica. */
function replicate(loads: readonly number[], slots: number) {
  const expertOf = loads.map((_, expert) => expert)
  const counts = loads.map(() => 1)
  while (expertOf.length < slots) {
    let heaviest = 0
    loads.forEach((load, expert) => {
      if (load / counts[expert]! > loads[heaviest]! / counts[heaviest]!) heaviest = expert
    })
    expertOf.push(heaviest)
    counts[heaviest]!++
  }
  return { expertOf, loads: expertOf.map((expert) => loads[expert]! / counts[expert]!) }
}

/** Packs of equally many items, heaviest item first, each into the lightest pack with room. */
function packEvenly(loads: readonly number[], packs: number): number[][] {
  const room = loads.length / packs
  const members: number[][] = Array.from({ length: packs }, () => [])
  const totals = members.map(() => 0)
  const order = loads.map((_, item) => item)
  if (room > 1) order.sort((a, b) => loads[b]! - loads[a]! || a - b)
  for (const item of order) {
    let lightest = -1
    members.forEach(({ length }, pack) => {
      const isLighter = lightest < 0 || totals[pack]! < totals[lightest]!
      if (length < room && isLighter) lightest = pack
    })
    members[lightest]!.push(item)
    totals[lightest]! += loads[item]!
  }
  return members
}

/** Load of each rank when an expert's tokens are shared evenly by its replicas. */
export function rankLoads(loads: readonly number[], experts: SlotExperts, ranks: number): number[] {
  const replicas = new Map<number, number>()
  for (const expert of experts) replicas.set(expert, (replicas.get(expert) ?? 0) + 1)
  const perRank = experts.length / ranks
  return Array.from({ length: ranks }, (_, rank) =>
    sum(
      experts
        .slice(rank * perRank, (rank + 1) * perRank)
        .map((expert) => loads[expert]! / replicas.get(expert)!),
    ),
  )
}

/** Largest ÷ mean: 1 is perfect; what the slowest rank makes all others wait. */
export function imbalance(loads: readonly number[]): number {
  const total = sum(loads)
  return total === 0 ? 1 : (Math.max(...loads) * loads.length) / total
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
