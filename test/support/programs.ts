/** Decoders without a checkpoint, for tests of programs. */

import { buildDecoder } from '../../lib/models/decoder.ts'
import { conventionalDecoder, type LayerChoices } from '../../lib/models/families/common.ts'
import type { DecoderSpec } from '../../lib/models/spec.ts'
import { expectedTensors } from '../../lib/models/weights.ts'
import type { Program, ProgramLimits } from '../../lib/program/types.ts'
import type { TensorIndex, TensorInfo } from '../../lib/weights/safetensors.ts'

export const SMALL_LIMITS: ProgramLimits = {
  maxTokens: 32,
  maxRows: 8,
  maxSeqs: 4,
  numBlocks: 16,
  blockSize: 8,
  maxBlocksPerSeq: 8,
  vocabSize: 100,
  numSlots: 4,
}

export interface SmallDecoder {
  readonly tp?: number
  readonly layers?: number
  readonly hiddenSize?: number
  readonly limits?: Partial<ProgramLimits>
  readonly choices?: Partial<LayerChoices>
}

export function smallSpec({
  layers = 2,
  hiddenSize = 64,
  choices = {},
}: SmallDecoder): DecoderSpec {
  const dimensions = {
    vocabSize: 100,
    hiddenSize,
    intermediateSize: 2 * hiddenSize,
    numLayers: layers,
    heads: 4,
    kvHeads: 2,
    headDim: hiddenSize / 4,
    maxPositions: 512,
    eps: 1e-5,
  }
  return conventionalDecoder(dimensions, {
    ropes: [{ rotaryDim: hiddenSize / 4, theta: 10_000, scaling: { kind: 'none' } }],
    layerChoices: () => ({ rope: 0, ...choices }),
    tied: false,
  })
}

/** An index of tensors that exist on paper. */
export function paperIndex(spec: DecoderSpec, dtype: TensorInfo['dtype'] = 'F32'): TensorIndex {
  let offset = 8
  const tensors = new Map<string, TensorInfo>()
  for (const [name, shape] of expectedTensors(spec)) {
    const bytes = shape.reduce((product, size) => product * size, dtype === 'F32' ? 4 : 2)
    tensors.set(name, { file: 0, offset, bytes, dtype, shape })
    offset += bytes
  }
  return { files: [{ path: '/paper/model.safetensors', bytes: offset }], tensors }
}

/** The serial program of a small decoder. */
export function serialProgram(options: SmallDecoder = {}): Program {
  const spec = smallSpec(options)
  return buildDecoder(spec, paperIndex(spec), {
    name: 'small',
    tp: options.tp ?? 1,
    limits: { ...SMALL_LIMITS, ...options.limits },
    dtype: 'f32',
    kvDtype: 'f32',
    precision: 'auto',
    maxModelLen: 512,
  }).program
}
