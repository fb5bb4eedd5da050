/**
 * The order that lanes and waits guarantee. Ops of one lane run in program order, so what an op
 * runs after is a prefix of each lane: one index per lane (a vector clock) stands for the whole
 * reachability relation.
 */

import { type Clock, latest, NEVER } from './hazards.ts'
import { LANES, type Lane, type Program } from './types.ts'

const LANE_INDEX: Readonly<Record<Lane, 0 | 1 | 2>> = { compute: 0, memory: 1, network: 2 }

export function laneIndex(lane: Lane): 0 | 1 | 2 {
  return LANE_INDEX[lane]
}

/** `clock` with op `index` of `lane` in it. */
export function withOp(clock: Clock, lane: Lane, index: number): Clock {
  const at = LANE_INDEX[lane]
  return clock.map((last, l) => (l === at ? Math.max(last, index) : last)) as unknown as Clock
}

/** For each op, what is certain to be done when it starts. */
export function computeClocks(program: Program): Clock[] {
  const clocks: Clock[] = []
  let lanes: readonly Clock[] = LANES.map(() => NEVER)
  program.ops.forEach((op, index) => {
    let clock = lanes[LANE_INDEX[op.lane]]!
    for (const wait of op.waits) {
      clock = latest(clock, withOp(clocks[wait]!, program.ops[wait]!.lane, wait))
    }
    clocks.push(clock)
    lanes = lanes.map((last, l) =>
      l === LANE_INDEX[op.lane] ? withOp(clock, op.lane, index) : last,
    )
  })
  return clocks
}
