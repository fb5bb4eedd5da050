/** The pipeline from a program as built to one that a runtime loads. */

import { planMemory } from './memory.ts'
import { PASSES, type PassOptions } from './passes/index.ts'
import type { Program } from './types.ts'
import { validateProgram } from './validate.ts'

/** Validates, runs every pass, plans memory, validates again. ERR_PROGRAM where something is wrong. */
export function compileProgram(program: Program, options: PassOptions): Program {
  validateProgram(program)
  const scheduled = PASSES.reduce((current, pass) => pass.run(current, options), program)
  const planned = planMemory(scheduled)
  validateProgram(planned)
  return planned
}
