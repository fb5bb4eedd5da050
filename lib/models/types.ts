/**
 * What the rest of nanoweave sees of a model: the checkpoint as read from its folder, and what it
 * compiles to.
 */

import type { PassOptions } from '../program/passes/index.ts'
import type { Dtype, Program, ProgramLimits } from '../program/types.ts'
import type { TensorIndex } from '../weights/safetensors.ts'
import type { ScaledFormat, WeightManifest } from '../weights/types.ts'
import type { ExpertSlots } from './blocks.ts'
import type { DecoderSpec } from './spec.ts'

/** A checkpoint whose config and safetensors headers have been read and checked. */
export interface Model {
  readonly folder: string
  /** As in `architectures[0]` of config.json: `LlamaForCausalLM`. */
  readonly architecture: string
  /** Sizes, tensor names and choices; the same for every layout and context length. */
  readonly spec: DecoderSpec
  readonly tensors: TensorIndex
  /** From config.json; generation_config.json may say otherwise and is the engine's to read. */
  readonly bosTokenId?: number
  readonly eosTokenIds: readonly number[]
  readonly vocabSize: number
  /** Longest context the config declares, tokens. */
  readonly maxPositions: number
  /** Dtype of most of the parameters: what `precision: 'auto'` computes in. */
  readonly weightDtype: Dtype
  /** What some weights are stored in and loading turns into bf16. */
  readonly convertedFormats: readonly ScaledFormat[]
  /** Parsed config.json, frozen at the top. */
  readonly config: Readonly<Record<string, unknown>>
}

export interface CompileOptions extends PassOptions {
  readonly tensorParallel: number
  /** Ranks, or groups of ranks, that the experts are spread over. Only 1 for dense models. */
  readonly expertParallel?: number
  /** Slots for experts beyond those that a rank holds anyway, and where experts begin. */
  readonly expertPlacement?: ExpertPlacementOptions
  /** `auto`: activations in the weights' dtype. `f32`: float32 activations, weights as stored. `bf16`: both bf16. */
  readonly precision: 'auto' | 'f32' | 'bf16'
  readonly limits: Omit<ProgramLimits, 'vocabSize'>
  /** Longest context that will be served; decides between longrope's short and long factors. Default: maxPositions. */
  readonly maxModelLen?: number
  /** f32, bf16 or f16; default: the activation dtype. */
  readonly kvDtype?: Dtype
}

/** Experts whose places may change: steps carry expert tables (lib/parallel/balance). */
export interface ExpertPlacementOptions {
  /** Of each rank, for replicas. */
  readonly extraSlots: number
  /** By layer with experts: the position of each expert. Default: in order. */
  readonly positions?: readonly (readonly number[])[]
}

export interface CompiledModel {
  readonly program: Program
  /** Independent of `parts`: programs of one layout share the weights. */
  readonly manifest: WeightManifest
  readonly activationDtype: Dtype
  /** Where experts are loaded, where steps may move them. */
  readonly expertSlots: ExpertSlots | undefined
}

export interface FootprintLayout {
  readonly tensorParallel: number
  readonly expertParallel?: number
  readonly expertPlacement?: ExpertPlacementOptions
  readonly precision: 'auto' | 'f32' | 'bf16'
  readonly kvDtype?: Dtype
}

export interface ModelFootprint {
  /** Weight buffers of the largest rank, before any repacking, bytes. */
  readonly weightBytesPerRank: number
  /** One KV block of `blockSize` tokens on one rank, over all layers, bytes. */
  kvBytesPerBlock(blockSize: number): number
  /** Parameters of the checkpoint; a tied head counts once. */
  readonly parameters: number
}
