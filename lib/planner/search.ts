/**
 * Search: the schedule with the shortest predicted step, among numbers of nano-batches, where they
 * are cut, how far each trails the one before, which ops get lanes of their own, matmuls that take
 * their sums into themselves, and which share of the device collectives and attention hold. As in NanoFlow (https://arxiv.org/abs/2408.12757, §4.1)
 * in two stages: structures first with usual shares, then the shares of the best few. A schedule
 * that does not promise 3 % over the serial one is refused: predictions err by more than that.
 */

import { type LayeredProgram, mapLayered } from '../program/layered.ts'
import type { LaneMode } from '../program/passes/lanes.ts'
import { type MatmulOverlap, overlapMatmuls } from '../program/passes/overlap-matmul.ts'
import { type Hardware, IN_TURN } from './hardware.ts'
import { applySchedule, partBounds, ROW_TILE, type Schedule, SERIAL } from './schedule.ts'
import type { StepShape } from './step-shape.ts'
import { predictSeconds } from './timeline.ts'

/** Predicted gains below this are not worth a change. */
export const MIN_GAIN = 0.03

export interface Prediction {
  readonly schedule: Schedule
  readonly seconds: number
}

export interface Decision {
  /** What to run: `best` where it pays, else the serial schedule. */
  readonly schedule: Schedule
  readonly serialSeconds: number
  /** The best overlapped schedule; undefined: none was tried. */
  readonly best: Prediction | undefined
  /** serialSeconds / best.seconds - 1; 0 when none was tried. */
  readonly gain: number
  /** Why the serial schedule was kept; undefined when it was not. */
  readonly refusal: string | undefined
  /** Predictions made. */
  readonly tried: number
}

const STAGGERS = [0, 1, 2, 4] as const
const MODES: readonly LaneMode[] = ['all', 'attention', 'network']
const SPLITS: readonly (readonly number[])[] = [
  [0.375, 1],
  [0.5, 1],
  [0.625, 1],
  [1 / 3, 2 / 3, 1],
  [0.25, 0.5, 0.75, 1],
]
const OVERLAP_FORMS: readonly MatmulOverlap['form'][] = ['all_reduce', 'reduce_scatter']
const ROW_GROUPS = [2, 4, 8] as const
/** Multiprocessors that collectives may hold, and shares for attention. */
const NETWORK_UNITS = [4, 8, 16, 22, 32] as const
const MEMORY_SHARES = [0.2, 0.3, 0.4, 0.5] as const
const REFINED = 4

/** Chooses for steps of one shape. The program is serial, before any pass. */
export function chooseSchedule(
  hardware: Hardware,
  program: LayeredProgram,
  shape: StepShape,
): Decision {
  const serialSeconds = predictStep(hardware, scheduled(program, SERIAL), shape)
  const refuse = (refusal: string): Decision => ({
    schedule: SERIAL,
    serialSeconds,
    best: undefined,
    gain: 0,
    refusal,
    tried: 1,
  })
  if (!hardware.lanesOverlap) {
    return refuse(`a rank of ${hardware.title} ${IN_TURN}, so there is nothing to overlap`)
  }
  if (shape.numTokens < 2 * ROW_TILE) {
    return refuse(`${shape.numTokens} tokens are not two tiles of ${ROW_TILE} rows`)
  }
  const search = new Search(hardware, program, shape)
  const best = search.run()
  const gain = serialSeconds / best.seconds - 1
  const percent = (100 * gain).toFixed(1)
  const refusal =
    gain >= MIN_GAIN
      ? undefined
      : `the best overlapped schedule would gain ${percent} %, under ${100 * MIN_GAIN} %`
  const schedule = refusal === undefined ? best.schedule : SERIAL
  return { schedule, serialSeconds, best, gain, refusal, tried: search.tried + 1 }
}

/** A program with the passes of the schedule it is to run under. */
export interface ScheduledProgram {
  readonly program: LayeredProgram
  readonly schedule: Schedule
}

export function scheduled(program: LayeredProgram, schedule: Schedule): ScheduledProgram {
  return { program: mapLayered(program, (one) => applySchedule(one, schedule)), schedule }
}

/** Seconds of a step under its schedule. */
export function predictStep(
  hardware: Hardware,
  { program, schedule }: ScheduledProgram,
  shape: StepShape,
): number {
  const bounds = partBounds(schedule, shape.numTokens)
  return predictSeconds(hardware, program, shape, bounds, schedule.shares)
}

class Search {
  tried = 0
  readonly #hardware: Hardware
  readonly #program: LayeredProgram
  readonly #shape: StepShape
  readonly #usual: Schedule['shares']

  constructor(hardware: Hardware, program: LayeredProgram, shape: StepShape) {
    this.#hardware = hardware
    this.#program = program
    this.#shape = shape
    this.#usual = { network: this.#networkShares()[1]!, memory: 0.4 }
  }

  run(): Prediction {
    const structures: Prediction[] = []
    for (const splits of SPLITS) {
      const parts = splits.length
      if (this.#shape.numTokens < parts * ROW_TILE) continue
      for (const lanes of MODES) {
        for (const stagger of STAGGERS) {
          const schedule = { parts, stagger, lanes, splits, shares: this.#usual }
          structures.push(this.#predict(scheduled(this.#program, schedule)))
        }
      }
    }
    structures.push(...this.#overlappedMatmuls())
    structures.sort((a, b) => a.seconds - b.seconds)
    const refined = structures.slice(0, REFINED).flatMap(({ schedule }) => this.#refine(schedule))
    return [...refined, ...structures].reduce((a, b) => (b.seconds < a.seconds ? b : a))
  }

  /** One nano-batch, its sums inside the matmuls before them, where there are such sums. */
  #overlappedMatmuls(): Prediction[] {
    // The deeper program: a form that one layer of it does not allow is for no layer.
    const serial = this.#program.long
    return OVERLAP_FORMS.filter(
      (form) => overlapMatmuls(serial, { form, groups: 2 }).ops.length < serial.ops.length,
    ).flatMap((form) =>
      ROW_GROUPS.filter((groups) => this.#shape.numTokens >= groups * ROW_TILE).map((groups) => {
        const schedule = { ...SERIAL, shares: this.#usual, overlap: { form, groups } }
        return this.#predict(scheduled(this.#program, schedule))
      }),
    )
  }

  #refine(schedule: Schedule): Prediction[] {
    const { program } = scheduled(this.#program, schedule)
    // Attention has a share only where it runs beside a matmul.
    const isShared = schedule.parts > 1 && schedule.lanes !== 'network'
    const memories = isShared ? MEMORY_SHARES : [schedule.shares.memory]
    return this.#networkShares().flatMap((network) =>
      memories.map((memory) =>
        this.#predict({ program, schedule: { ...schedule, shares: { network, memory } } }),
      ),
    )
  }

  #networkShares(): number[] {
    return NETWORK_UNITS.map((units) => units / this.#hardware.units)
  }

  #predict(candidate: ScheduledProgram): Prediction {
    this.tried++
    const seconds = predictStep(this.#hardware, candidate, this.#shape)
    return { schedule: candidate.schedule, seconds }
  }
}
