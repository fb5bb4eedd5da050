/**
 * lanes: which ops may run beside others. Ops come with the lane of their kind; the modes move the
 * short ones between matmuls to the matmuls' lane, where they do not queue behind another part's attention.
 */

import { ATTENTION_KINDS } from '../../ops/index.ts'
import type { Lane, Program, ProgramOp } from '../types.ts'

/**
 * `all`: matmuls, memory-bound ops and collectives each have a lane. `attention`: of the memory-bound
 * ops attention alone has one (NanoFlow). `network`: only collectives run beside the rest (TokenWeave).
 */
export type LaneMode = 'all' | 'attention' | 'network'

export const LANE_MODES: readonly LaneMode[] = ['all', 'attention', 'network']

export function assignLanes(program: Program, mode: LaneMode = 'all'): Program {
  if (mode === 'all') return program
  const laneOf = ({ kind, lane }: ProgramOp): Lane =>
    lane === 'memory' && (mode === 'network' || !ATTENTION_KINDS.has(kind)) ? 'compute' : lane
  return { ...program, ops: program.ops.map((op) => ({ ...op, lane: laneOf(op) })) }
}
