/**
 * Sizing: how many sequences, tokens, rows and KV blocks an engine works with, from what the user
 * asked for, what the model needs and what the devices have. Pure arithmetic.
 */

import { EngineError } from '../errors.ts'
import type { ModelFootprint } from '../models/index.ts'
import type { EngineOptions } from './types.ts'

export interface SizingInput {
  readonly backend: 'cpu' | 'cuda'
  /** Of the device with the least memory per rank placed on it: memory, and what is free of it. */
  readonly memoryBytes: number
  readonly freeMemoryBytes: number
  /** Ranks that share that device. */
  readonly ranksPerDevice: number
  readonly world: number
  readonly vocabSize: number
  readonly maxPositions: number
  readonly footprint: ModelFootprint
  readonly options: Pick<
    EngineOptions,
    | 'maxModelLen'
    | 'maxNumSeqs'
    | 'maxNumBatchedTokens'
    | 'kvCacheBytes'
    | 'hostKvBytes'
    | 'maxWaiting'
  >
}

export interface Sizes {
  readonly maxModelLen: number
  readonly maxNumSeqs: number
  readonly maxNumBatchedTokens: number
  readonly maxRows: number
  readonly maxWaiting: number
  readonly numSlots: number
  readonly blockSize: number
  readonly numBlocks: number
  readonly maxBlocksPerSeq: number
  /** Of all ranks together. */
  readonly kvCacheBytes: number
  /** Blocks on the host for requests that are swapped out, and their bytes of all ranks together. */
  readonly numHostBlocks: number
  readonly hostKvBytes: number
}

const BLOCK_SIZE = 16
const MIB = 2 ** 20
const GIB = 2 ** 30
/** The [rows, vocabulary] float32 buffer of logits stays below this. */
const MAX_LOGITS_BYTES = 64 * MIB
const MAX_CPU_KV_BYTES = 4 * GIB
/** KV slots are int32 in a step. */
const MAX_BLOCKS = Math.floor((2 ** 31 - 1) / BLOCK_SIZE)
const GPU_MEMORY_UTILIZATION = 0.9
/** On a GPU, per slot and token of the vocabulary: a count and a bias (native/cuda/slots.h). */
const SLOT_TOKEN_BYTES = 6
/** Per row and token of the vocabulary: weights while sampling. Rows at once: one a multiprocessor. */
const SAMPLING_TOKEN_BYTES = 4
const SAMPLING_ROWS = 160
/** Sequences at once, where the user does not say. */
const DEFAULT_SEQS = { cpu: 64, cuda: 512 }

/** ERR_USAGE for options out of range, ERR_OUT_OF_MEMORY when weights and KV cannot fit. */
export function computeSizes(input: SizingInput): Sizes {
  const { options, vocabSize, footprint, world } = input
  const maxNumBatchedTokens =
    integer(options.maxNumBatchedTokens, 'maxNumBatchedTokens', 1, 65_536) ??
    Math.max(defaultBatchedTokens(input), options.maxNumSeqs ?? 0)
  const rowsOfLogits = Math.max(1, Math.floor(MAX_LOGITS_BYTES / (4 * vocabSize)))
  const maxNumSeqs =
    integer(options.maxNumSeqs, 'maxNumSeqs', 1, 4096) ??
    Math.min(DEFAULT_SEQS[input.backend], maxNumBatchedTokens, rowsOfLogits)
  if (maxNumSeqs > maxNumBatchedTokens)
    throw new EngineError(
      'ERR_USAGE',
      `maxNumSeqs ${maxNumSeqs} exceeds maxNumBatchedTokens ${maxNumBatchedTokens}: every running sequence needs a token in a step`,
    )
  const maxRows = Math.max(maxNumSeqs, Math.min(maxNumBatchedTokens, rowsOfLogits))

  const askedLen = integer(options.maxModelLen, 'maxModelLen', 1, 2 ** 31 - 1)
  if (askedLen !== undefined && askedLen > input.maxPositions)
    throw new EngineError(
      'ERR_USAGE',
      `maxModelLen ${askedLen} exceeds the model's context of ${input.maxPositions}`,
    )
  const wantedLen = askedLen ?? input.maxPositions
  const blockBytes = footprint.kvBytesPerBlock(BLOCK_SIZE) * world
  const blocksOf = (tokens: number) => Math.ceil(tokens / BLOCK_SIZE)

  let kvBytes = integer(options.kvCacheBytes, 'kvCacheBytes', 1, Number.MAX_SAFE_INTEGER)
  if (kvBytes === undefined) {
    kvBytes = defaultKvBytes(input, maxNumSeqs)
    // A context the user asked for gets the memory it needs where there is any.
    if (askedLen !== undefined)
      kvBytes = Math.max(
        kvBytes,
        Math.min(blocksOf(askedLen) * blockBytes, availableKvBytes(input, maxNumSeqs)),
      )
    // More than all sequences can fill would never be used.
    kvBytes = Math.min(kvBytes, blocksOf(wantedLen) * maxNumSeqs * blockBytes)
  }
  const numBlocks = Math.min(MAX_BLOCKS, Math.floor(kvBytes / blockBytes))
  const neededBlocks = askedLen === undefined ? 1 : blocksOf(askedLen)
  if (numBlocks < neededBlocks)
    throw new EngineError(
      'ERR_OUT_OF_MEMORY',
      `a context of ${askedLen ?? BLOCK_SIZE} tokens needs ${neededBlocks * blockBytes} bytes of KV cache and there are ${kvBytes}; ` +
        (numBlocks > 0
          ? `maxModelLen ${numBlocks * BLOCK_SIZE} would fit, or raise kvCacheBytes`
          : `raise kvCacheBytes to at least ${blockBytes}, or free memory`),
    )
  const maxModelLen = Math.min(wantedLen, numBlocks * BLOCK_SIZE)
  const hostBytes = integer(options.hostKvBytes, 'hostKvBytes', 0, Number.MAX_SAFE_INTEGER) ?? 0
  const numHostBlocks = Math.min(MAX_BLOCKS, Math.floor(hostBytes / blockBytes))
  return {
    maxModelLen,
    maxNumSeqs,
    maxNumBatchedTokens,
    maxRows,
    maxWaiting: integer(options.maxWaiting, 'maxWaiting', 0, 1e6) ?? 4 * maxNumSeqs,
    // Slots of ended sequences are free again only when the steps in flight have settled.
    numSlots: numSlotsFor(maxNumSeqs),
    blockSize: BLOCK_SIZE,
    numBlocks,
    maxBlocksPerSeq: blocksOf(maxModelLen),
    kvCacheBytes: numBlocks * blockBytes,
    numHostBlocks,
    hostKvBytes: numHostBlocks * blockBytes,
  }
}

/** ERR_OUT_OF_MEMORY, with what would fit, unless weights, KV and activations fit on every device. */
export function requireMemory(input: SizingInput, sizes: Sizes, arenaBytes: number): void {
  const { footprint, ranksPerDevice, world } = input
  // On the CPU the host's copies are in the same memory.
  const onHost = input.backend === 'cpu' ? sizes.hostKvBytes / world : 0
  const kv = sizes.kvCacheBytes / world + onHost
  const state = stateBytes(input, sizes.maxNumSeqs)
  const needed = footprint.weightBytesPerRank + kv + arenaBytes + state
  const available = usableBytes(input) / ranksPerDevice
  if (needed <= available) return
  const spare = available - footprint.weightBytesPerRank - arenaBytes - state
  const blockBytes = footprint.kvBytesPerBlock(BLOCK_SIZE)
  const fits = Math.floor(spare / blockBytes)
  throw new EngineError(
    'ERR_OUT_OF_MEMORY',
    `each rank needs ${needed} bytes (weights ${footprint.weightBytesPerRank}, KV cache ${kv}, activations ${arenaBytes + state}) and has ${Math.floor(available)}; ` +
      (fits > 0
        ? `kvCacheBytes ${fits * blockBytes * world} would fit`
        : 'use more devices, or a smaller model or maxNumBatchedTokens'),
  )
}

function defaultBatchedTokens(input: SizingInput): number {
  if (input.backend === 'cpu') return 512
  return input.memoryBytes >= 80e9 ? 8192 : 2048
}

function usableBytes(input: SizingInput): number {
  if (input.backend === 'cpu') return input.freeMemoryBytes
  return Math.max(0, input.freeMemoryBytes - (1 - GPU_MEMORY_UTILIZATION) * input.memoryBytes)
}

function numSlotsFor(maxNumSeqs: number): number {
  return 2 * maxNumSeqs
}

/** What a rank keeps on a GPU beside weights, KV cache and activations: sampling. */
function stateBytes(input: SizingInput, maxNumSeqs: number): number {
  if (input.backend === 'cpu') return 0
  const slots = numSlotsFor(maxNumSeqs) * SLOT_TOKEN_BYTES
  return (slots + Math.min(maxNumSeqs, SAMPLING_ROWS) * SAMPLING_TOKEN_BYTES) * input.vocabSize
}

/** Left for the KV cache of all ranks when the weights are in place. */
function availableKvBytes(input: SizingInput, maxNumSeqs: number): number {
  const perRank =
    usableBytes(input) / input.ranksPerDevice -
    input.footprint.weightBytesPerRank -
    stateBytes(input, maxNumSeqs)
  return Math.max(0, Math.floor(0.9 * perRank * input.world))
}

function defaultKvBytes(input: SizingInput, maxNumSeqs: number): number {
  const available = availableKvBytes(input, maxNumSeqs)
  if (input.backend === 'cuda') return available
  return Math.min(available, MAX_CPU_KV_BYTES, Math.floor(input.freeMemoryBytes / 4))
}

function integer(
  value: number | undefined,
  option: string,
  min: number,
  max: number,
): number | undefined {
  if (value === undefined) return undefined
  if (!Number.isInteger(value) || value < min || value > max)
    throw new EngineError('ERR_USAGE', `${option} must be a whole number from ${min} to ${max}`)
  return value
}
