/**
 * Least-loaded expert parallelism: for one step, rows of ranks that have too many are computed by ranks
 * that have few, which get the expert's weights for it. Worth it only for so many rows that computing
 * them costs more than moving the weights; fewer stay at home, so at decode sizes nothing moves.
 * Pure: the same plan on every rank from the same counts.
 */

/** `rows` rows of `expert`, the last of those at home, are computed by rank `to`. */
export interface Move {
  readonly expert: number
  readonly from: number
  readonly to: number
  readonly rows: number
}

/**
 * Rows of an expert from which moving its weights pays: weights are w bytes a parameter and 2 FLOP a
 * parameter and row, so rows = w · FLOP/s ÷ (2 · bytes/s).
 */
export function smallestMove(hardware: {
  readonly bytesPerParameter: number
  readonly flopsPerSecond: number
  /** Between ranks. */
  readonly bytesPerSecond: number
}): number {
  const { bytesPerParameter, flopsPerSecond, bytesPerSecond } = hardware
  return Math.ceil((bytesPerParameter * flopsPerSecond) / (2 * bytesPerSecond))
}

/** Expert e is at home on rank homes[e]; loads in rows. `room`: foreign experts that a rank can take. */
export function planLeastLoaded(
  loads: readonly number[],
  homes: readonly number[],
  options: {
    readonly ranks: number
    readonly smallest: number
    readonly room?: readonly number[]
  },
): Move[] {
  const { ranks, smallest } = options
  const rankLoads = new Array<number>(ranks).fill(0)
  loads.forEach((load, expert) => {
    rankLoads[homes[expert]!]! += load
  })
  const share = Math.ceil(loads.reduce((total, load) => total + load, 0) / ranks)
  const moves: Move[] = []
  const room = options.room?.slice() ?? rankLoads.map(() => Number.POSITIVE_INFINITY)
  const heaviest = loads.map((_, expert) => expert).sort((a, b) => loads[b]! - loads[a]! || a - b)
  for (const expert of heaviest) {
    const from = homes[expert]!
    let left = loads[expert]!
    while (rankLoads[from]! > share && left >= smallest) {
      const to = leastLoaded(rankLoads, (rank) => room[rank]! > 0)
      if (to === -1) break
      const rows = Math.min(left, rankLoads[from]! - share, share - rankLoads[to]!)
      if (rows < smallest) break
      moves.push({ expert, from, to, rows })
      room[to]!--
      rankLoads[from]! -= rows
      rankLoads[to]! += rows
      left -= rows
    }
  }
  return moves
}

function leastLoaded(loads: readonly number[], hasRoom: (rank: number) => boolean): number {
  let least = -1
  loads.forEach((load, rank) => {
    if (hasRoom(rank) && (least === -1 || load < loads[least]!)) least = rank
  })
  return least
}

/** Rows of each rank after the moves. */
export function loadsAfter(
  loads: readonly number[],
  homes: readonly number[],
  ranks: number,
  moves: readonly Move[],
): number[] {
  const result = new Array<number>(ranks).fill(0)
  loads.forEach((load, expert) => {
    result[homes[expert]!]! += load
  })
  for (const { from, to, rows } of moves) {
    result[from]! -= rows
    result[to]! += rows
  }
  return result
}
