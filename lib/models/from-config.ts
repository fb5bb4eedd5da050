/**
 * A model from its config alone: sizes and tensor shapes as the config says, no checkpoint. Programs
 * compiled from it are the real ones; there are no weights to load. For planning and simulation.
 */

import type { JsonObject } from '../weights/json.ts'
import type { TensorIndex, TensorInfo } from '../weights/safetensors.ts'
import { unsupported } from './config.ts'
import { findFamily } from './families/index.ts'
import type { Model } from './types.ts'
import { expectedTensors } from './weights.ts'

const STORED = { bf16: 'BF16', f16: 'F16', f32: 'F32' } as const
/** Bytes of an element. */
const SIZES = { bf16: 2, f16: 2, f32: 4 } as const

/** ERR_MODEL_CONFIG or ERR_UNSUPPORTED_MODEL, as for a checkpoint with this config. */
export function modelFromConfig(
  name: string,
  config: JsonObject,
  dtype: keyof typeof STORED = 'bf16',
): Model {
  const [architecture] = config.architectures as [string]
  const family = findFamily(architecture)
  if (family === undefined) throw unsupported(`architecture ${architecture} is not supported`)
  const embedding = indexOf(new Map([['model.embed_tokens.weight', [1]]]), dtype)
  const { spec, maxPositions } = family.describe(config, embedding)
  return {
    folder: name,
    architecture,
    spec,
    tensors: indexOf(expectedTensors(spec), dtype),
    eosTokenIds: [],
    vocabSize: spec.vocabSize,
    maxPositions,
    weightDtype: dtype,
    convertedFormats: [],
    config: Object.freeze(config),
  }
}

function indexOf(
  shapes: ReadonlyMap<string, readonly number[]>,
  dtype: keyof typeof STORED,
): TensorIndex {
  const tensors = new Map<string, TensorInfo>()
  let offset = 0
  for (const [tensor, shape] of shapes) {
    const bytes = shape.reduce((product, size) => product * size, SIZES[dtype])
    tensors.set(tensor, { file: 0, offset, bytes, dtype: STORED[dtype], shape })
    offset += bytes
  }
  return { files: [{ path: 'config.json', bytes: offset }], tensors }
}
