/** Memory planning: alignment, sharing, packing, inputs and results, speed of growth. */

import { describe, expect, it } from 'vitest'
import { addRmsNorm } from '../lib/ops/add-rms-norm.ts'
import { copy } from '../lib/ops/copy.ts'
import { ProgramBuilder } from '../lib/program/builder.ts'
import { compileProgram } from '../lib/program/compile.ts'
import { planMemory } from '../lib/program/memory.ts'
import { deriveWaits } from '../lib/program/passes/waits.ts'
import { maxBytes } from '../lib/program/shapes.ts'
import type { Program } from '../lib/program/types.ts'
import { findRaces } from './support/order-check.ts'
import { SMALL_LIMITS, serialProgram } from './support/programs.ts'
import { createRandom } from './support/random.ts'

const arenaBuffers = (program: Program) =>
  program.buffers.filter((buffer) => buffer.space === 'arena')

function createBuilder(): ProgramBuilder {
  return new ProgramBuilder({ name: 'test', world: 1, tp: 1, limits: SMALL_LIMITS })
}

/** x0 → x1 → … → xn, each [T, width]. */
function chain(widths: readonly number[]): Program {
  const builder = createBuilder()
  const buffers = widths.map((width, i) => builder.arena(`x${i}`, 'f32', ['T', width]))
  for (let i = 1; i < buffers.length; i++) {
    builder.add(`copy${i}`, copy({ x: buffers[i - 1]!, y: buffers[i]! }))
  }
  return builder.build()
}

describe('planMemory', () => {
  it('aligns every buffer and keeps it inside the arena', () => {
    const program = compileProgram(serialProgram({ tp: 2, hiddenSize: 72 }), { parts: 4 })
    for (const buffer of arenaBuffers(program)) {
      expect(buffer.offset! % 64).toBe(0)
      const end = buffer.offset! + maxBytes(buffer, program.limits)
      expect(end).toBeLessThanOrEqual(program.arenaBytes)
    }
    for (const buffer of program.buffers) {
      if (buffer.space !== 'arena') expect(buffer.offset).toBeUndefined()
    }
  })

  it('gives a chain of copies the room of its input, its result and what is between', () => {
    const program = planMemory(chain([16, 16, 16, 16, 16, 16]))
    // The first is given from outside, the last is the result, two in between take turns.
    expect(program.arenaBytes).toBe(3 * 16 * 4 * SMALL_LIMITS.maxTokens)
  })

  it('never puts two operands of an op in the same bytes', () => {
    const builder = createBuilder()
    const [x, residual, y] = ['x', 'residual', 'y'].map((name) =>
      builder.arena(name, 'f32', ['T', 16]),
    ) as [number, number, number]
    const weight = builder.weight('w', 'f32', [16], 'plain')
    builder.add('norm', addRmsNorm({ x, residual, weight, y }, { eps: 0 }))
    expect(findRaces(planMemory(builder.build()))).toEqual([])
    expect(planMemory(builder.build()).arenaBytes).toBe(3 * 16 * 4 * SMALL_LIMITS.maxTokens)
  })

  it('keeps the bytes of what is given before a step and read after it', () => {
    const builder = createBuilder()
    const [early, a, b, late] = ['early', 'a', 'b', 'late'].map((name) =>
      builder.arena(name, 'f32', ['T', 16]),
    ) as [number, number, number, number]
    builder.add('first', copy({ x: a, y: early }))
    builder.add('second', copy({ x: b, y: late }))
    const { buffers } = planMemory(deriveWaits(builder.build()))
    // `b` is read first by the second op, but was written before the step.
    expect(new Set(buffers.map((buffer) => buffer.offset)).size).toBe(4)
  })

  it('packs a serial decoder into what its widest moment needs', () => {
    const program = compileProgram(serialProgram({ layers: 6 }), { parts: 1 })
    const few = compileProgram(serialProgram({ layers: 2 }), { parts: 1 })
    expect(program.arenaBytes).toBe(few.arenaBytes)
    // Residual and rope table live throughout; the feed-forward's gate_up, input and output meet.
    const rowBytes = 4 * (64 + 16 + 256 + 128)
    expect(program.arenaBytes).toBeLessThanOrEqual(rowBytes * SMALL_LIMITS.maxTokens * 1.1)
  })

  it('plans random dependency graphs without races', () => {
    const random = createRandom(11)
    for (let round = 0; round < 30; round++) {
      const builder = createBuilder()
      const width = 8
      const buffers = Array.from({ length: 12 }, (_, i) =>
        builder.arena(`x${i}`, 'f32', ['T', width * random.int(1, 4)]),
      )
      const weight = builder.weight('w', 'f32', [width], 'plain')
      for (let i = 0; i < 25; i++) {
        const [x, y] = [buffers[random.int(0, 11)]!, buffers[random.int(0, 11)]!]
        const draft = copy({ x, y })
        builder.add(`op${i}`, random.next() < 0.5 ? draft : { ...draft, kind: 'all_reduce' })
      }
      expect(weight).toBe(12)
      expect(findRaces(planMemory(deriveWaits(builder.build())))).toEqual([])
    }
  })

  it('plans 80 layers in 4 parts, with every conflict ordered at the arena’s sharing', () => {
    const limits = { maxTokens: 4096, maxRows: 256 }
    const program = compileProgram(serialProgram({ tp: 4, layers: 80, limits }), { parts: 4 })
    expect(program.ops.length).toBeGreaterThan(2500)
    const four = compileProgram(serialProgram({ tp: 4, layers: 4, limits }), { parts: 4 })
    expect(program.arenaBytes).toBe(four.arenaBytes)
  })
})
