/** What `plan` and `simulate` share: models by folder or preset, hardware by name or tune file. */

import { existsSync, readFileSync } from 'node:fs'
import { EngineError, systemReason } from '../errors.ts'
import { buildLayered, loadModel, type Model, modelPreset } from '../models/index.ts'
import { type Hardware, parseHardware } from '../planner/hardware.ts'
import { findHardware, hardwarePreset } from '../planner/presets.ts'
import type { LayeredProgram } from '../program/layered.ts'

export interface PlannedModel {
  readonly name: string
  readonly model: Model
}

/** Exactly one of a folder and a preset's name. */
export function findModel(folder: string | undefined, preset: string | undefined): PlannedModel {
  if ((folder === undefined) === (preset === undefined)) {
    throw new EngineError('ERR_USAGE', 'name a model folder or a --preset, one of the two')
  }
  if (preset !== undefined) {
    const { name, model } = modelPreset(preset)
    return { name, model }
  }
  return { name: folder!, model: loadModel(folder!) }
}

export function hasExperts({ model }: PlannedModel): boolean {
  return model.spec.layers.some(({ feedForward }) => feedForward.kind === 'experts')
}

/** A preset's name, or the path of a tune file. */
export function findMachine(text: string): Hardware {
  const preset = findHardware(text)
  if (preset !== undefined) return preset
  if (!existsSync(text)) return hardwarePreset(text)
  return parseHardware(readTuneFile(text), text)
}

function readTuneFile(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (cause) {
    throw new EngineError('ERR_IO', `cannot read ${file}: ${systemReason(cause)}`, { cause })
  }
}

/** The model's serial programs for a layout; large limits: only costs are asked for. */
export function plannedProgram(
  { model }: PlannedModel,
  layout: { readonly tensorParallel: number; readonly expertsOverRanks: boolean },
): LayeredProgram {
  const { tensorParallel, expertsOverRanks } = layout
  return buildLayered(model, {
    tensorParallel,
    expertParallel: expertsOverRanks ? tensorParallel : 1,
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
}
