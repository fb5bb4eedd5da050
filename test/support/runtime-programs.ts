/** Small programs and steps for tests of the runtime itself: sums over ranks, late and dead ranks. */

import { STEP_SECTION } from '../../lib/engine/step.ts'
import { EngineError } from '../../lib/errors.ts'
import type { NativeRuntime, RuntimeOptions } from '../../lib/native/binding.ts'
import { loadBinding, toEngineError } from '../../lib/native/load.ts'
import type { Program, ProgramOp } from '../../lib/program/types.ts'
import { encodeStep } from './native.ts'

export const HIDDEN = 8
export const MAX_TOKENS = 16
const BUFFER_BYTES = MAX_TOKENS * HIDDEN * 4

/** x at buffer 0, y at buffer 1, both [T, HIDDEN] f32; no KV cache, no vocabulary to speak of. */
export function twoBufferProgram(world: number, ops: readonly ProgramOp[]): Program {
  const buffer = (name: string, index: number) => ({
    name,
    space: 'arena' as const,
    dtype: 'f32' as const,
    shape: ['T' as const, HIDDEN],
    offset: index * BUFFER_BYTES,
  })
  return {
    version: 1,
    name: 'test',
    world,
    tp: world,
    parts: 1,
    limits: {
      maxTokens: MAX_TOKENS,
      maxRows: 4,
      maxSeqs: 4,
      numBlocks: 0,
      blockSize: 0,
      maxBlocksPerSeq: 0,
      vocabSize: 100,
      numSlots: 4,
    },
    buffers: [buffer('x', 0), buffer('y', 1)],
    ops,
    arenaBytes: 2 * BUFFER_BYTES,
  }
}

/** y = sum of x over the ranks. */
export function sumOp(label = 'sum'): ProgramOp {
  return {
    kind: 'all_reduce',
    label,
    lane: 'network',
    inputs: [{ buffer: 0 }],
    outputs: [{ buffer: 1 }],
    attrs: {},
    waits: [],
  }
}

/** Rank `rank` sleeps; ms < 0: until the communicator aborts, a dead rank. */
export function stallOp(rank: number, ms: number): ProgramOp {
  return {
    kind: 'stall',
    label: 'stall',
    lane: 'network',
    inputs: [{ buffer: 0 }],
    outputs: [{ buffer: 0 }],
    attrs: { rank, ms },
    waits: [],
  }
}

export function runtimeOptions(
  world: number,
  overrides: Partial<RuntimeOptions> = {},
): RuntimeOptions {
  return {
    ranks: Array.from({ length: world }, () => ({ device: 'cpu' })),
    tp: world,
    heapBytes: 1 << 16,
    threadsPerRank: 1,
    waitTimeoutMs: 20_000,
    deterministic: false,
    cpuIsa: 'auto',
    ...overrides,
  }
}

export function openRuntime(world: number, overrides: Partial<RuntimeOptions> = {}): NativeRuntime {
  return new (loadBinding().Runtime)(runtimeOptions(world, overrides))
}

/** A step of `numTokens` tokens in one part. */
export function tokensStep(numTokens: number): Int32Array {
  return encodeStep(
    new Map<number, ArrayLike<number>>([
      [STEP_SECTION.partBounds, [0, numTokens]],
      [STEP_SECTION.tokens, new Int32Array(numTokens).fill(1)],
      [STEP_SECTION.positions, Int32Array.from({ length: numTokens }, (_, index) => index)],
    ]),
  )
}

/** The EngineError a promise rejects with; anything else fails the test. */
export async function rejection(promise: Promise<unknown>): Promise<EngineError> {
  try {
    await promise
  } catch (error) {
    const converted = toEngineError(error)
    if (converted instanceof EngineError) return converted
  }
  throw new Error('nothing was rejected')
}

/** Writes x = rank + 1 everywhere, runs `step`, and gives y of every rank. */
export async function sumOverRanks(
  runtime: NativeRuntime,
  program: number,
  world: number,
  numTokens: number,
): Promise<Float32Array[]> {
  for (let rank = 0; rank < world; rank++) {
    const x = new Float32Array(numTokens * HIDDEN).fill(rank + 1)
    await runtime.write(program, 'x', rank, new Uint8Array(x.buffer))
  }
  await runtime.submit(program, tokensStep(numTokens))
  const outputs: Float32Array[] = []
  for (let rank = 0; rank < world; rank++) {
    const bytes = await runtime.read(program, 'y', rank)
    outputs.push(new Float32Array(bytes.buffer, 0, numTokens * HIDDEN))
  }
  return outputs
}
