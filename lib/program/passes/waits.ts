/**
 * waits: derives every op's waits from the hazards. An op waits for the last op of each other lane
 * that it depends on, unless its own lane, or another of its waits, already guarantees it.
 */

import { type Clock, findDependencies, latest, NEVER } from '../hazards.ts'
import { laneIndex, withOp } from '../order.ts'
import { LANES, type Program, type ProgramOp } from '../types.ts'

export function deriveWaits(program: Program): Program {
  const dependencies = findDependencies(program)
  // What is done when an op has finished, and when the last op of each lane has.
  const after: Clock[] = []
  const lanes: Clock[] = LANES.map(() => NEVER)
  const ops: ProgramOp[] = []
  program.ops.forEach((op, index) => {
    const { lane } = op
    const own = laneIndex(lane)
    const last: number[] = [-1, -1, -1]
    for (const dependency of dependencies[index]!) {
      const at = laneIndex(ops[dependency]!.lane)
      last[at] = Math.max(last[at]!, dependency)
    }
    const needed = last.filter((wait, at) => at !== own && wait > lanes[own]![at]!)
    const isImplied = (wait: number, by: number) =>
      by !== wait && after[by]![laneIndex(ops[wait]!.lane)] >= wait
    const waits = needed
      .filter((wait) => !needed.some((other) => isImplied(wait, other)))
      .sort((a, b) => a - b)
    const before = waits.reduce<Clock>((clock, wait) => latest(clock, after[wait]!), lanes[own]!)
    ops.push({ ...op, waits })
    after.push(withOp(before, lane, index))
    lanes[own] = after[index]!
  })
  return { ...program, ops }
}
