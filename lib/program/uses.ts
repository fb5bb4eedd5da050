/** Which ops touch which buffers, for passes that replace ops. */

import { accessesOf } from './hazards.ts'
import type { Program } from './types.ts'

/** Ops that touch each buffer, ascending, once each. */
export function usesOfBuffers(program: Program): number[][] {
  const uses: number[][] = program.buffers.map(() => [])
  program.ops.forEach((op, index) => {
    for (const { view } of accessesOf(program, op)) {
      const list = uses[view.buffer]!
      if (list.at(-1) !== index) list.push(index)
    }
  })
  return uses
}

/** Removes arena buffers that no op uses; views are renumbered. */
export function dropUnusedBuffers(program: Program): Program {
  const uses = usesOfBuffers(program)
  const isKept = program.buffers.map(
    (buffer, index) => buffer.space !== 'arena' || uses[index]!.length > 0,
  )
  const buffers = program.buffers.filter((_, index) => isKept[index])
  let numKept = 0
  const renumbered = isKept.map((kept) => (kept ? numKept++ : -1))
  const renumber = <T extends { readonly buffer: number }>(view: T): T => ({
    ...view,
    buffer: renumbered[view.buffer]!,
  })
  const ops = program.ops.map((op) => ({
    ...op,
    inputs: op.inputs.map((view) => view && renumber(view)),
    outputs: op.outputs.map(renumber),
  }))
  return { ...program, buffers, ops }
}
