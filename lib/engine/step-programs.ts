/**
 * Which program a step runs: the engine may load several forms of a model's program, and the number of
 * a step's tokens picks one. Looked up per step, so nothing is allocated here.
 */

/** Where a step's rows are cut into nano-batches. */
export interface PartLayout {
  readonly parts: number
  /** First row of part `index`, 0..parts, of a step of `numTokens` rows; ascending. */
  readonly bound: (numTokens: number, index: number) => number
}

/** Parts of ceil(numTokens / parts) rows; the last may be empty. */
export function evenParts(parts: number): PartLayout {
  return {
    parts,
    bound: (numTokens, index) => Math.min(numTokens, index * Math.ceil(numTokens / parts)),
  }
}

export interface StepProgram extends PartLayout {
  /** Steps of at least so many tokens, up to the next program's. */
  readonly minTokens: number
  readonly programId: number
}

/** `programs` ascend by minTokens; the first begins at 0. */
export function programFor(programs: readonly StepProgram[], numTokens: number): StepProgram {
  let index = programs.length - 1
  while (index > 0 && programs[index].minTokens > numTokens) index--
  return programs[index]
}
