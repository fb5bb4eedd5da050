/** Which schedules an engine loads, and which of them a step takes. */

import { describe, expect, it } from 'vitest'
import { chooseSchedules } from '../lib/engine/schedules.ts'
import { programFor } from '../lib/engine/step-programs.ts'
import { modelPreset } from '../lib/models/index.ts'
import type { DeviceDescription } from '../lib/native/binding.ts'

const device = (model: string, backend: 'cpu' | 'cuda' = 'cuda'): DeviceDescription => ({
  name: backend === 'cpu' ? 'cpu' : 'cuda:0',
  backend,
  model,
  memoryBytes: 80e9,
  freeMemoryBytes: 80e9,
  units: 132,
  features: [],
  peers: [],
})
const options = {
  nanoBatches: 'auto' as const,
  device: device('NVIDIA H100 80GB HBM3'),
  model: modelPreset('llama-3-70b').model,
  tensorParallel: 8,
  expertParallel: 1,
  precision: 'auto' as const,
  sizes: { maxNumBatchedTokens: 4096, maxNumSeqs: 256, maxModelLen: 8192 },
}

describe('chooseSchedules', () => {
  it('takes a given number, in even parts', () => {
    const [only, ...others] = chooseSchedules({ ...options, nanoBatches: 3 })
    expect(others).toEqual([])
    const bounds = [0, 1, 2, 3].map((index) => only!.layout.bound(10, index))
    expect(bounds).toEqual([0, 4, 8, 10])
  })

  it.each([
    ['the CPU', device('some CPU', 'cpu'), /in turn/],
    ['a device without rates', device('NVIDIA T4'), /no rates of NVIDIA T4/],
  ])('runs serially on %s, and says why', (_, other, reason) => {
    const chosen = chooseSchedules({ ...options, device: other })
    expect(chosen).toHaveLength(1)
    expect(chosen[0]!.layout.parts).toBe(1)
    expect(chosen[0]!.description).toMatch(reason)
  })

  it('overlaps long steps of a large model over ranks, short ones not', () => {
    const chosen = chooseSchedules(options)
    expect(chosen[0]).toMatchObject({ minTokens: 0, layout: { parts: 1 } })
    expect(chosen.length).toBeGreaterThan(1)
    const last = chosen.at(-1)!
    expect(last.layout.parts).toBeGreaterThan(1)
    expect(last.description).toMatch(/% predicted/)
    // Rows are cut at tiles, all of them are in some part, and parts ascend.
    for (const numTokens of [1, 300, 1024, 4096]) {
      const { parts, bound } = last.layout
      const bounds = Array.from({ length: parts + 1 }, (_, index) => bound(numTokens, index))
      expect(bounds[0]).toBe(0)
      expect(bounds.at(-1)).toBe(numTokens)
      expect([...bounds].sort((a, b) => a - b)).toEqual(bounds)
    }
    expect(last.layout.bound(4096, 1) % 128).toBe(0)
  })

  it('sees what experts over ranks cost', () => {
    const sizes = { maxNumBatchedTokens: 512, maxNumSeqs: 256, maxModelLen: 8192 }
    const { model } = modelPreset('mixtral-8x7b')
    const partsOver = (expertParallel: number) =>
      chooseSchedules({ ...options, model, tensorParallel: 1, expertParallel, sizes }).map(
        ({ layout }) => layout.parts,
      )
    // One rank has nothing to hide; eight have the ways of rows to their experts and back.
    expect(partsOver(1)).toEqual([1])
    expect(partsOver(8).at(-1)).toBeGreaterThan(1)
  })

  it('keeps one rank with nothing to hide serial', () => {
    const small = { ...options, model: modelPreset('llama-3-8b').model, tensorParallel: 1 }
    const sizes = { maxNumBatchedTokens: 512, maxNumSeqs: 8, maxModelLen: 2048 }
    for (const { layout } of chooseSchedules({ ...small, sizes })) expect(layout.parts).toBe(1)
  })
})

it('a step takes the last program whose tokens it reaches', () => {
  const bound = (numTokens: number) => numTokens
  const programs = [0, 256, 1024].map((minTokens, programId) => ({
    minTokens,
    programId,
    parts: 1,
    bound,
  }))
  const taken = [1, 255, 256, 1023, 1024, 9999].map(
    (numTokens) => programFor(programs, numTokens).programId,
  )
  expect(taken).toEqual([0, 0, 1, 1, 2, 2])
})
