/** What `plan` and `simulate` share: models by folder or preset, hardware by name or tune file. */

import { existsSync, readFileSync } from 'node:fs'
import { EngineError } from '../errors.ts'
import {
  buildLayered,
  type ExpertSizes,
  loadModel,
  type Model,
  modelPreset,
} from '../models/index.ts'
import { withExperts } from '../planner/experts.ts'
import { type Hardware, parseHardware } from '../planner/hardware.ts'
import { findHardware, hardwarePreset } from '../planner/presets.ts'
import { type LayeredProgram, mapLayered } from '../program/layered.ts'

export interface PlannedModel {
  readonly name: string
  readonly model: Model
  readonly experts: ExpertSizes | undefined
}

/** Exactly one of a folder and a preset's name. */
export function findModel(folder: string | undefined, preset: string | undefined): PlannedModel {
  if ((folder === undefined) === (preset === undefined)) {
    throw new EngineError('ERR_USAGE', 'name a model folder or a --preset, one of the two')
  }
  if (preset !== undefined) {
    const { name, model, experts } = modelPreset(preset)
    return { name, model, experts }
  }
  const model = loadModel(folder!)
  return { name: folder!, model, experts: undefined }
}

/** A preset's name, or the path of a tune file. */
export function findMachine(text: string): Hardware {
  const preset = findHardware(text)
  if (preset !== undefined) return preset
  if (!existsSync(text)) return hardwarePreset(text)
  return parseHardware(readFileSync(text, 'utf8'), text)
}

/** The model's serial programs for a layout; large limits: only costs are asked for. */
export function plannedProgram(
  { model, experts }: PlannedModel,
  layout: { readonly tensorParallel: number; readonly expertsOverRanks: boolean },
): LayeredProgram {
  const { tensorParallel, expertsOverRanks } = layout
  const layered = buildLayered(model, {
    tensorParallel,
    precision: 'auto',
    limits: {
      maxTokens: 65536,
      maxRows: 4096,
      maxSeqs: 4096,
      numBlocks: 1024,
      blockSize: 16,
      maxBlocksPerSeq: 1024,
      numSlots: 0,
    },
  })
  if (experts === undefined) return layered
  return mapLayered(layered, (program) =>
    withExperts(program, { ...experts, overRanks: expertsOverRanks }),
  )
}
