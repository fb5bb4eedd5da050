/**
 * Which schedules an engine loads: the number of nano-batches it was told, or what the planner chooses
 * for each bucket of tokens on the device at hand. Where the planner knows nothing of the device, or
 * promises too little, steps run serially.
 */

import { buildLayered, type Model } from '../models/index.ts'
import type { DeviceDescription } from '../native/binding.ts'
import { IN_TURN } from '../planner/hardware.ts'
import { hardwareOfDevice } from '../planner/presets.ts'
import { describeSchedule, partBound, type Schedule, SERIAL } from '../planner/schedule.ts'
import { chooseSchedule } from '../planner/search.ts'
import { mixedShape } from '../planner/step-shape.ts'
import type { Sizes } from './sizing.ts'
import { evenParts, type PartLayout } from './step-programs.ts'

export interface ChosenSchedule {
  readonly minTokens: number
  readonly schedule: Schedule
  readonly layout: PartLayout
  /** What was chosen, and why nothing else. */
  readonly description: string
}

export interface ScheduleOptions {
  readonly nanoBatches: 'auto' | number
  readonly device: DeviceDescription
  readonly model: Model
  readonly tensorParallel: number
  readonly expertParallel: number
  readonly precision: 'auto' | 'f32' | 'bf16'
  readonly sizes: Pick<Sizes, 'maxNumBatchedTokens' | 'maxNumSeqs' | 'maxModelLen'>
}

/** Below it a step is too short to cut. */
const SMALLEST_BUCKET = 256

/** Ascending by minTokens, the first at 0; neighbours differ. */
export function chooseSchedules(options: ScheduleOptions): ChosenSchedule[] {
  const { nanoBatches, device } = options
  if (nanoBatches !== 'auto') return [forced(nanoBatches)]
  if (device.backend === 'cpu') {
    return [serial(0, `a CPU rank ${IN_TURN}, so there is nothing to overlap`)]
  }
  const hardware = hardwareOfDevice(device.model)
  if (hardware === undefined) {
    return [serial(0, `the planner has no rates of ${device.model}`)]
  }
  const program = buildLayered(options.model, {
    tensorParallel: options.tensorParallel,
    expertParallel: options.expertParallel,
    precision: options.precision,
    limits: {
      maxTokens: options.sizes.maxNumBatchedTokens,
      maxRows: options.sizes.maxNumSeqs,
      maxSeqs: options.sizes.maxNumSeqs,
      numBlocks: 1,
      blockSize: 16,
      maxBlocksPerSeq: 1,
      numSlots: 0,
    },
  })
  const chosen = [serial(0, `steps under ${SMALLEST_BUCKET} tokens are not cut`)]
  for (let tokens = SMALLEST_BUCKET; tokens <= options.sizes.maxNumBatchedTokens; tokens *= 2) {
    const { schedule, gain, refusal } = chooseSchedule(
      hardware,
      program,
      typicalStep(options, tokens),
    )
    if (sameSchedule(schedule, chosen.at(-1)!.schedule)) continue
    chosen.push(
      refusal === undefined
        ? {
            minTokens: tokens,
            schedule,
            layout: {
              parts: schedule.parts,
              bound: (numTokens, index) => partBound(schedule, numTokens, index),
            },
            description: `${describeSchedule(schedule)}: ${(100 * gain).toFixed(1)} % predicted`,
          }
        : serial(tokens, refusal),
    )
  }
  return chosen
}

/** Half the sequences there may be decode in the middle of a context; prompts fill the rest. */
function typicalStep({ sizes }: ScheduleOptions, numTokens: number) {
  return mixedShape({
    numTokens,
    numDecodes: Math.min(Math.floor(numTokens / 2), Math.floor(sizes.maxNumSeqs / 2)),
    context: Math.min(1024, Math.ceil(sizes.maxModelLen / 2)),
    promptLength: Math.min(2048, sizes.maxModelLen),
  })
}

function serial(minTokens: number, why: string): ChosenSchedule {
  return {
    minTokens,
    schedule: SERIAL,
    layout: evenParts(1),
    description: `serial: ${why}`,
  }
}

/** Even parts, whatever the planner thinks. */
function forced(parts: number): ChosenSchedule {
  const splits = Array.from({ length: parts }, (_, part) => (part + 1) / parts)
  return {
    minTokens: 0,
    schedule: { ...SERIAL, parts, splits },
    layout: evenParts(parts),
    description: `${parts} nano-batches, as asked`,
  }
}

function sameSchedule(a: Schedule, b: Schedule): boolean {
  return sameProgram(a, b) && a.splits.every((split, part) => split === b.splits[part])
}

/** Whether two schedules compile to the same program. */
export function sameProgram(a: Schedule, b: Schedule): boolean {
  const isSameOverlap =
    a.overlap?.form === b.overlap?.form && a.overlap?.groups === b.overlap?.groups
  const isSameOrder = a.parts === b.parts && a.stagger === b.stagger && a.lanes === b.lanes
  return isSameOverlap && isSameOrder && a.shares.network === b.shares.network
}
