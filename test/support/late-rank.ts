/** Makes one rank late in a compiled program: a stall in front of an op, on the op's first input. */

import { stall } from '../../lib/ops/stall.ts'
import type { Program, ProgramOp } from '../../lib/program/types.ts'

export function withLateRank(program: Program, label: string, rank: number, ms: number): Program {
  const at = program.ops.findIndex((op) => op.label === label)
  if (at < 0) throw new Error(`the program has no op ${label}`)
  const late = program.ops[at]!
  const x = late.inputs[0]!
  const draft = stall({ x: x.buffer }, { rank, ms })
  const inserted: ProgramOp = {
    ...late,
    kind: draft.kind,
    label: `${label}.late`,
    inputs: [x],
    outputs: [x],
    attrs: draft.attrs,
  }
  // Ops from there on have moved by one place.
  const moved = (op: ProgramOp): ProgramOp => ({
    ...op,
    waits: op.waits.map((wait) => (wait >= at ? wait + 1 : wait)),
  })
  const ops = [...program.ops.slice(0, at), inserted, ...program.ops.slice(at).map(moved)]
  return { ...program, ops }
}
