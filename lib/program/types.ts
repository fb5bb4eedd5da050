/**
 * Program: the flat list of ops over named buffers that a model is compiled to, once per
 * (model, parallel layout, part count). It is plain JSON: the native side loads it, the planner
 * times it, `nanoweave plan` draws it. Program order is always a correct serial execution;
 * lanes only permit overlap. Mirrored by native/program/program.h.
 */

export type Dtype = 'f32' | 'bf16' | 'f16' | 'i32' | 'u8'

export const DTYPE_BYTES: Readonly<Record<Dtype, number>> = {
  f32: 4,
  bf16: 2,
  f16: 2,
  i32: 4,
  u8: 1,
}

/** T: tokens of a step. R: rows that reach the logits. S: sequences. Sizes come with each step. */
export type DimSymbol = 'T' | 'R' | 'S'

/** A symbol's size differs from step to step; memory is planned at `limits`. */
export type Dim = number | DimSymbol

/**
 * Where a buffer lives.
 * - `arena`: activations, at `offset` in every rank's symmetric heap (the same on all ranks).
 * - `weight`: loaded by `loadWeights`, constant, private to the rank.
 * - `kv`: created by `loadWeights`, zeroed, kept across steps. [blocks, 2, kvHeads, blockSize, headDim],
 *   keys and values; or [blocks, 1, 1, blockSize, dim], latent vectors of which both are made.
 */
export type BufferSpace = 'arena' | 'weight' | 'kv'

/** `matmul`: the backend may repack the [N, K] weight for its matmul kernels. */
export type WeightLayout = 'plain' | 'matmul'

export interface ProgramBuffer {
  readonly name: string
  readonly space: BufferSpace
  readonly dtype: Dtype
  readonly shape: readonly Dim[]
  /** Only weights; `plain` when absent. */
  readonly layout?: WeightLayout
  /** Bytes from the start of the arena; set by planMemory, 64-byte aligned. Arena buffers only. */
  readonly offset?: number
}

/** `compute`: matmul. `memory`: attention, norms, gathers. `network`: collectives. */
export type Lane = 'compute' | 'memory' | 'network'
export const LANES: readonly Lane[] = ['compute', 'memory', 'network']

/**
 * A buffer, or part `part` of the program's `parts` nano-batches of it (rows of its T dimension).
 * Parts are disjoint; a view without `part` conflicts with all of them. `upTo` reads parts
 * 0..part (attention on the KV cache: parts ascend in position).
 */
export interface View {
  readonly buffer: number
  readonly part?: number
  readonly upTo?: boolean
}

export type AttrValue = number | string | boolean | readonly number[]

export interface ProgramOp {
  /** Name of the op in lib/ops and native/ops/table.cc. */
  readonly kind: string
  /** Unique, for people: `layers.3.attention#1`. */
  readonly label: string
  readonly lane: Lane
  /** One entry per declared input; null where an optional input is absent. */
  readonly inputs: readonly (View | null)[]
  readonly outputs: readonly View[]
  readonly attrs: Readonly<Record<string, AttrValue>>
  /** Ops on other lanes that must be done first: indices, ascending, transitively reduced. */
  readonly waits: readonly number[]
}

/** Of all positions of a layer together. */
export const MAX_EXPERT_SLOTS = 1024

/** Routed experts whose places a step may change: expert tables and copies of their weights. */
export interface ExpertLimits {
  /** Layers with experts. */
  readonly tables: number
  readonly count: number
  /** Of all positions together, equally many each; MAX_EXPERT_SLOTS at most. */
  readonly slots: number
  /** Ranks, or groups of ranks, that the experts are spread over. */
  readonly positions: number
  /** Of a token. */
  readonly choices: number
}

/** The most a step may ask for; `prepare` and memory planning rely on them. */
export interface ProgramLimits {
  readonly maxTokens: number
  readonly maxRows: number
  readonly maxSeqs: number
  /** KV blocks per data-parallel group. 0: the program has no KV cache. */
  readonly numBlocks: number
  readonly blockSize: number
  readonly maxBlocksPerSeq: number
  /** Token ids accepted in a step are 0..vocabSize-1. */
  readonly vocabSize: number
  /** Sampling slots (state of a running sequence, on the device). */
  readonly numSlots: number
  /** KV blocks on the host that steps may copy to and from. Default 0. */
  readonly numHostBlocks?: number
  /** Absent: experts stay where they are loaded. */
  readonly experts?: ExpertLimits
}

export interface Program {
  readonly version: 1
  readonly name: string
  readonly world: number
  /** Ranks per attention group; world / tp groups. */
  readonly tp: number
  /** Nano-batches: 1..4. Part i holds rows [bounds[i], bounds[i + 1]) of the step. */
  readonly parts: number
  readonly limits: ProgramLimits
  readonly buffers: readonly ProgramBuffer[]
  readonly ops: readonly ProgramOp[]
  /** Bytes of arena each rank needs; set by planMemory. */
  readonly arenaBytes: number
  /** Of a device, what collectives may hold while other lanes compute; absent: the backend decides. */
  readonly networkShare?: number
}
