/** Sizing: defaults, limits, and what is said when memory does not suffice. */

import { describe, expect, it } from 'vitest'
import { placeRanks } from '../lib/engine/devices.ts'
import { computeSizes, requireMemory, type SizingInput } from '../lib/engine/sizing.ts'
import { EngineError } from '../lib/errors.ts'
import type { DeviceDescription } from '../lib/native/binding.ts'

const GIB = 2 ** 30
const BLOCK_BYTES = 2 ** 20

function input(overrides: Partial<SizingInput> = {}): SizingInput {
  return {
    backend: 'cpu',
    memoryBytes: 64 * GIB,
    freeMemoryBytes: 32 * GIB,
    ranksPerDevice: 1,
    world: 1,
    vocabSize: 2048,
    maxPositions: 2048,
    footprint: {
      weightBytesPerRank: GIB,
      kvBytesPerBlock: (blockSize) => (BLOCK_BYTES * blockSize) / 16,
      parameters: 5e8,
    },
    options: {},
    ...overrides,
  }
}

function failure(run: () => unknown): EngineError {
  try {
    run()
  } catch (error) {
    if (error instanceof EngineError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

describe('computeSizes', () => {
  it('on the CPU: 512 tokens, 64 sequences, KV of the smaller of 4 GiB and a quarter of memory', () => {
    expect(computeSizes(input())).toMatchObject({
      maxNumBatchedTokens: 512,
      maxNumSeqs: 64,
      maxRows: 512,
      numSlots: 128,
      maxWaiting: 256,
      maxModelLen: 2048,
      numBlocks: 4096,
      maxBlocksPerSeq: 128,
      kvCacheBytes: 4 * GIB,
    })
    expect(computeSizes(input({ freeMemoryBytes: 8 * GIB })).numBlocks).toBe(2048)
  })

  it('never makes more KV blocks than all sequences can fill', () => {
    expect(computeSizes(input({ options: { maxNumSeqs: 2 } })).numBlocks).toBe(256)
    expect(computeSizes(input({ maxPositions: 100 })).numBlocks).toBe(64 * 7)
  })

  it('on a large GPU: 8192 tokens, 512 sequences, what memory is left', () => {
    const sizes = computeSizes(
      input({ backend: 'cuda', memoryBytes: 80 * GIB, freeMemoryBytes: 79 * GIB }),
    )
    expect(sizes).toMatchObject({ maxNumBatchedTokens: 8192, maxNumSeqs: 512 })
    expect(sizes.kvCacheBytes).toBeGreaterThan(60 * GIB * 0.9)
    expect(sizes.kvCacheBytes).toBeLessThan(71 * GIB)
  })

  it('shares memory among the ranks', () => {
    const sizes = computeSizes(input({ world: 4, ranksPerDevice: 4 }))
    expect(sizes.numBlocks).toBe(1024)
    expect(sizes.kvCacheBytes).toBe(4 * GIB)
  })

  it('keeps the logits of a step below 64 MiB, but has a row for every sequence asked for', () => {
    const wide = input({ vocabSize: 262_144 })
    expect(computeSizes(wide)).toMatchObject({ maxRows: 64, maxNumSeqs: 64 })
    expect(computeSizes({ ...wide, options: { maxNumSeqs: 100 } })).toMatchObject({ maxRows: 100 })
    expect(computeSizes(input({ vocabSize: 2 ** 26 })).maxNumSeqs).toBe(1)
  })

  it('shortens the context to what the KV cache holds, unless the context was asked for', () => {
    const small = input({ maxPositions: 131_072 })
    expect(computeSizes(small).maxModelLen).toBe(4096 * 16)
    const asked = { ...small, options: { maxModelLen: 100_000 } }
    expect(computeSizes(asked)).toMatchObject({ maxModelLen: 100_000, numBlocks: 6250 })
    const both = { ...small, options: { maxModelLen: 100_000, kvCacheBytes: 4 * GIB } }
    const error = failure(() => computeSizes(both))
    expect(error.code).toBe('ERR_OUT_OF_MEMORY')
    expect(error.message).toContain(String(4096 * 16))
  })

  it.each([
    { maxNumSeqs: 0 },
    { maxNumSeqs: 1.5 },
    { maxNumSeqs: 600, maxNumBatchedTokens: 512 },
    { maxNumBatchedTokens: 1e9 },
    { maxModelLen: 4096 },
    { maxModelLen: 0 },
    { maxWaiting: -1 },
    { kvCacheBytes: 0.5 },
  ])('refuses %o', (options) => {
    expect(failure(() => computeSizes(input({ options }))).code).toBe('ERR_USAGE')
  })

  it('refuses a KV cache without a block', () => {
    const error = failure(() => computeSizes(input({ options: { kvCacheBytes: 1000 } })))
    expect(error.code).toBe('ERR_OUT_OF_MEMORY')
    expect(error.message).toContain(String(BLOCK_BYTES))
  })

  it('refuses weights that leave no memory', () => {
    const tight = input({ freeMemoryBytes: GIB / 2 })
    expect(failure(() => computeSizes(tight)).code).toBe('ERR_OUT_OF_MEMORY')
  })
})

describe('requireMemory', () => {
  it('adds up weights, KV and activations per rank, and says what would fit', () => {
    const given = input({ options: { kvCacheBytes: 4 * GIB }, world: 2, ranksPerDevice: 2 })
    const sizes = computeSizes(given)
    requireMemory(given, sizes, 1000)
    const short = { ...given, freeMemoryBytes: 4 * GIB }
    const error = failure(() => requireMemory(short, sizes, 0))
    expect(error.code).toBe('ERR_OUT_OF_MEMORY')
    // 2 GiB per rank, of which weights take one.
    expect(error.message).toContain(String(2 * GIB))
  })
})

describe('placeRanks', () => {
  const device = (name: string): DeviceDescription => ({
    name,
    backend: name.startsWith('cuda') ? 'cuda' : 'cpu',
    model: name,
    memoryBytes: GIB,
    freeMemoryBytes: GIB,
    units: 1,
    features: [],
    peers: [],
  })
  const found = (...names: string[]) => ({
    devices: names.map(device),
    missing: { cuda: 'the driver is too old' },
    build: {},
  })
  const names = (...args: Parameters<typeof placeRanks>) =>
    placeRanks(...args).map(({ name }) => name)

  it('prefers CUDA, repeats devices, and takes the devices it is told', () => {
    const both = found('cpu', 'cuda:0', 'cuda:1')
    expect(names(both, 3)).toEqual(['cuda:0', 'cuda:1', 'cuda:0'])
    expect(names(both, 2, 'cpu')).toEqual(['cpu', 'cpu'])
    expect(names(both, 2, 'auto', ['cuda:1'])).toEqual(['cuda:1', 'cuda:1'])
    expect(names(found('cpu'), 1)).toEqual(['cpu'])
  })

  it('says why a device is missing', () => {
    const error = failure(() => placeRanks(found('cpu'), 1, 'cuda'))
    expect(error.code).toBe('ERR_NO_DEVICE')
    expect(error.message).toContain('the driver is too old')
    expect(failure(() => placeRanks(found('cpu'), 1, 'auto', ['cuda:3'])).code).toBe(
      'ERR_NO_DEVICE',
    )
    expect(failure(() => placeRanks(found(), 1)).code).toBe('ERR_NO_DEVICE')
    expect(failure(() => placeRanks(found('cpu'), 1, 'gpu' as 'cpu')).code).toBe('ERR_USAGE')
    const mixed = found('cpu', 'cuda:0')
    expect(failure(() => placeRanks(mixed, 2, 'auto', ['cpu', 'cuda:0'])).code).toBe('ERR_USAGE')
  })
})
