/**
 * StepTimer: what a planned step takes on a machine, predicted by the planner's cost model. The
 * schedule is chosen once per bucket of tokens, as the engine does, for the first step that falls in it.
 */

import type { Hardware } from '../planner/hardware.ts'
import { SERIAL } from '../planner/schedule.ts'
import { chooseSchedule, predictStep, type ScheduledProgram, scheduled } from '../planner/search.ts'
import type { StepShape } from '../planner/step-shape.ts'
import type { LayeredProgram } from '../program/layered.ts'
import type { StepPlan } from '../scheduler/plan.ts'

/** How an instance's prompts come to their keys and values. */
export type Role = 'both' | 'prefill' | 'decode'

export class StepTimer {
  readonly #hardware: Hardware
  readonly #program: LayeredProgram
  readonly #overlap: boolean
  readonly #role: Role
  readonly #serial: ScheduledProgram
  readonly #chosen = new Map<number, ScheduledProgram>()
  readonly #counts: number[] = []
  readonly #lengths: number[] = []

  constructor(hardware: Hardware, program: LayeredProgram, overlap: boolean, role: Role = 'both') {
    this.#hardware = hardware
    this.#program = program
    this.#overlap = overlap
    this.#role = role
    this.#serial = scheduled(program, SERIAL)
  }

  /** Milliseconds. */
  stepMs(plan: StepPlan): number {
    const shape = this.#shapeOf(plan)
    if (shape.numTokens === 0) return 0
    return 1e3 * predictStep(this.#hardware, this.#scheduleFor(shape), shape)
  }

  /** On a decode instance the keys of a prompt are there already: only its last token is computed. */
  #shapeOf(plan: StepPlan): StepShape {
    let numSeqs = 0
    let numTokens = 0
    for (let i = 0; i < plan.numSeqs; i++) {
      const isPrompt = plan.starts[i]! < plan.seqs[i]!.promptLen - 1
      const count = this.#role === 'decode' && isPrompt ? plan.samples[i]! : plan.counts[i]!
      if (count === 0) continue
      this.#counts[numSeqs] = count
      this.#lengths[numSeqs++] = plan.starts[i]! + plan.counts[i]!
      numTokens += count
    }
    return {
      numSeqs,
      counts: this.#counts,
      lengths: this.#lengths,
      numTokens,
      numRows: Math.max(1, plan.numRows),
    }
  }

  #scheduleFor(shape: StepShape): ScheduledProgram {
    if (!this.#overlap) return this.#serial
    const bucket = Math.ceil(Math.log2(shape.numTokens))
    let found = this.#chosen.get(bucket)
    if (found === undefined) {
      const { schedule } = chooseSchedule(this.#hardware, this.#program, shape)
      found = schedule === SERIAL ? this.#serial : scheduled(this.#program, schedule)
      this.#chosen.set(bucket, found)
    }
    return found
  }
}
