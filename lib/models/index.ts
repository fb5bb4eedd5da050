/**
 * Models: reads a checkpoint's folder, and compiles it for a parallel layout. A family is a file in
 * families/ and a line in its index. Only headers are read; weights are mapped by the runtime.
 */

import { resolve } from 'node:path'
import { EngineError } from '../errors.ts'
import { canSplitHeads } from '../parallel/sharding.ts'
import { compileProgram } from '../program/compile.ts'
import type { PassOptions } from '../program/passes/index.ts'
import { DTYPE_BYTES, type Dtype } from '../program/types.ts'
import type { JsonObject } from '../weights/json.ts'
import { resolveManifest } from '../weights/manifest.ts'
import { quote, readTensorIndex, requireFolder } from '../weights/safetensors.ts'
import { configError, readConfig, refuseUnknownFeatures, tokenIds, unsupported } from './config.ts'
import { buildDecoder, type DecoderProgram } from './decoder.ts'
import { FAMILIES, findFamily } from './families/index.ts'
import { withFusedExperts } from './fused-experts.ts'
import type { AttentionSpec, DecoderSpec } from './spec.ts'
import type {
  CompiledModel,
  CompileOptions,
  FootprintLayout,
  Model,
  ModelFootprint,
} from './types.ts'
import { checkTensors, convertedFormats, countParameters, dominantDtype } from './weights.ts'

export { modelFromConfig } from './from-config.ts'
export { buildLayered } from './layered.ts'
export {
  findModelPreset,
  type ModelPreset,
  modelPreset,
  modelPresetNames,
} from './presets.ts'
export type { AttentionSpec, DecoderSpec } from './spec.ts'
export type {
  CompiledModel,
  CompileOptions,
  FootprintLayout,
  Model,
  ModelFootprint,
} from './types.ts'

/** Largest group of ranks that the runtime drives. */
const MAX_TENSOR_PARALLEL = 64

/** Names that `architectures[0]` of a config may have. */
export function supportedArchitectures(): string[] {
  return FAMILIES.flatMap((family) => family.architectures)
}

/**
 * Reads config.json and the safetensors headers of `folder`, and checks the name, shape and dtype of
 * every tensor. Throws ERR_MODEL_NOT_FOUND, ERR_MODEL_CONFIG, ERR_UNSUPPORTED_MODEL,
 * ERR_SAFETENSORS, ERR_TENSOR_MISSING, ERR_TENSOR_SHAPE or ERR_IO.
 */
export function loadModel(folder: string): Model {
  const path = resolve(folder)
  requireFolder(path)
  const config = readConfig(path)
  const architecture = readArchitecture(config)
  const family = findFamily(architecture)
  if (family === undefined) {
    throw unsupported(
      `architecture ${quote(architecture)} is not supported; supported: ${supportedArchitectures().join(', ')}`,
    )
  }
  for (const part of [config, config.text_config]) {
    if (typeof part === 'object' && part !== null) {
      refuseUnknownFeatures(part as JsonObject, family.implements)
    }
  }
  const tensors = readTensorIndex(path)
  const { spec: published, maxPositions } = family.describe(config, tensors)
  const spec = withFusedExperts(published, tensors)
  checkTensors(spec, tensors)
  const [bosTokenId] = readTokens(config, 'bos_token_id', spec.vocabSize)
  return {
    folder: path,
    architecture,
    spec,
    tensors,
    ...(bosTokenId !== undefined && { bosTokenId }),
    eosTokenIds: readTokens(config, 'eos_token_id', spec.vocabSize),
    vocabSize: spec.vocabSize,
    maxPositions,
    weightDtype: dominantDtype(spec, tensors),
    convertedFormats: convertedFormats(spec, tensors),
    config: Object.freeze(config),
  }
}

function readArchitecture(config: JsonObject): string {
  const { architectures } = config
  const first: unknown = Array.isArray(architectures) ? architectures[0] : undefined
  if (typeof first !== 'string') throw configError('architectures names no architecture')
  return first
}

/** Token ids of the config, or of the text model inside a multimodal one. */
function readTokens(config: JsonObject, key: string, vocabSize: number): number[] {
  const ids = tokenIds(config, key, vocabSize)
  const text = config.text_config
  if (ids.length > 0 || typeof text !== 'object' || text === null) return ids
  return tokenIds(text as JsonObject, key, vocabSize)
}

/**
 * ERR_UNSUPPORTED_LAYOUT unless the model's heads split over `tensorParallel` ranks and its experts
 * over `expertParallel`.
 */
export function checkLayout(model: Model, tensorParallel: number, expertParallel = 1): void {
  const { layers } = model.spec
  const fits = (tp: number) =>
    tp <= MAX_TENSOR_PARALLEL &&
    layers.every(({ attention }) => canSplitHeads(attention.heads, cachedHeads(attention), tp))
  checkExpertLayout(model, tensorParallel, expertParallel)
  if (Number.isInteger(tensorParallel) && tensorParallel >= 1 && fits(tensorParallel)) return
  const { attention } = layers[0]!
  const [heads, kvHeads] = [attention.heads, cachedHeads(attention)]
  const degrees = Array.from({ length: MAX_TENSOR_PARALLEL }, (_, i) => i + 1).filter(fits)
  throw new EngineError(
    'ERR_UNSUPPORTED_LAYOUT',
    `${heads} attention heads and ${kvHeads} KV heads do not split over ${tensorParallel} ranks; ` +
      `tensor parallel degrees that fit: ${degrees.join(', ')}`,
  )
}

/** Heads that the KV cache has: latent vectors are one for all, on every rank. */
function cachedHeads(attention: AttentionSpec): number {
  return attention.kind === 'latent' ? 1 : attention.kvHeads
}

function checkExpertLayout({ architecture, spec }: Model, tp: number, ep: number): void {
  if (ep === 1) return
  const counts = numExperts(spec)
  const refuse = (why: string) => {
    throw new EngineError('ERR_UNSUPPORTED_LAYOUT', why)
  }
  if (counts.length === 0) {
    refuse(`${architecture} has no experts; expert parallelism over ${ep} ranks needs some`)
  }
  const fewest = Math.min(...counts, MAX_TENSOR_PARALLEL)
  if (!Number.isInteger(ep) || ep < 1 || ep > fewest) {
    refuse(`${ep} ranks cannot share the experts; between 1 and ${fewest} can`)
  }
  const world = Math.max(tp, ep)
  if (world % tp !== 0 || world % ep !== 0) {
    refuse(`of tensor parallel ${tp} and expert parallel ${ep} one must divide the other`)
  }
}

/** Experts of each layer that has some, in order. */
export function numExperts({ layers }: DecoderSpec): number[] {
  return layers.flatMap(({ feedForward }) =>
    feedForward.kind === 'experts' ? [feedForward.gates.length] : [],
  )
}

/** What activations are computed in. */
function activationDtypeOf(model: Model, precision: CompileOptions['precision']): Dtype {
  return precision === 'auto' ? model.weightDtype : precision
}

/** What a serial program depends on. */
export type SerialOptions = Omit<CompileOptions, keyof PassOptions>

/**
 * The program of a model for one layout before any pass, and its weights. Throws
 * ERR_UNSUPPORTED_LAYOUT, ERR_UNSUPPORTED_OPTION, or ERR_PROGRAM for limits that cannot be.
 */
export function buildModel(model: Model, options: SerialOptions): DecoderProgram {
  const { tensorParallel: tp, expertParallel = 1, precision } = options
  checkLayout(model, tp, expertParallel)
  const dtype = activationDtypeOf(model, precision)
  const kvDtype = options.kvDtype ?? dtype
  if (kvDtype !== 'f32' && kvDtype !== 'bf16' && kvDtype !== 'f16') {
    throw new EngineError('ERR_UNSUPPORTED_OPTION', `the KV cache can be f32, bf16 or f16`)
  }
  return buildDecoder(model.spec, model.tensors, {
    name: `${model.architecture} tp${tp}${expertParallel > 1 ? ` ep${expertParallel}` : ''}`,
    tp,
    ep: expertParallel,
    expertPlacement: options.expertPlacement,
    limits: { ...options.limits, vocabSize: model.vocabSize },
    dtype,
    kvDtype,
    precision,
    maxModelLen: options.maxModelLen ?? model.maxPositions,
  })
}

/**
 * The program and the weights of a model for one layout, precision and schedule. The manifest is
 * the same for every schedule. Throws what buildModel throws.
 */
export function compileModel(model: Model, options: CompileOptions): CompiledModel {
  const { program, weights, kv, expertSlots } = buildModel(model, options)
  const name = `${program.name} parts${options.parts}`
  return {
    program: compileProgram({ ...program, name }, options),
    manifest: resolveManifest(model.tensors, weights, kv),
    activationDtype: activationDtypeOf(model, options.precision),
    expertSlots,
  }
}

/** Memory that a layout needs per rank, and the size of the model. */
export function modelFootprint(model: Model, layout: FootprintLayout): ModelFootprint {
  const { tensorParallel: tp, expertParallel = 1, precision } = layout
  checkLayout(model, tp, expertParallel)
  const dtype = activationDtypeOf(model, precision)
  const kvDtype = layout.kvDtype ?? dtype
  const { weights, kv } = buildDecoder(model.spec, model.tensors, {
    name: 'footprint',
    tp,
    ep: expertParallel,
    expertPlacement: layout.expertPlacement,
    limits: minimalLimits(model.spec),
    dtype,
    kvDtype,
    precision,
    maxModelLen: model.maxPositions,
  })
  const bytesOf = ({
    dtype,
    shape,
  }: {
    readonly dtype: Dtype
    readonly shape: readonly number[]
  }) => shape.reduce((bytes, size) => bytes * size, DTYPE_BYTES[dtype])
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0)
  const kvBytesPerToken = sum(kv.map(bytesOf))
  return {
    weightBytesPerRank: sum(weights.map(bytesOf)),
    kvBytesPerBlock: (blockSize) => kvBytesPerToken * blockSize,
    parameters: countParameters(model.spec),
  }
}

/** One token, one block of one token: KV buffers are then as large as a token's share. */
function minimalLimits(spec: DecoderSpec) {
  return {
    maxTokens: 1,
    maxRows: 1,
    maxSeqs: 1,
    numBlocks: 1,
    blockSize: 1,
    maxBlocksPerSeq: 1,
    numSlots: 1,
    vocabSize: spec.vocabSize,
  }
}
