/** Passes: what they produce, and that every schedule they allow computes what the serial program does. */

import { describe, expect, it } from 'vitest'
import { opSpec } from '../lib/ops/index.ts'
import { compileProgram } from '../lib/program/compile.ts'
import { findDependencies } from '../lib/program/hazards.ts'
import { planMemory } from '../lib/program/memory.ts'
import { fuseAllReduce } from '../lib/program/passes/fuse-all-reduce.ts'
import { LANE_MODES } from '../lib/program/passes/lanes.ts'
import { splitNanoBatches } from '../lib/program/passes/nano-batch.ts'
import { overlapMatmuls } from '../lib/program/passes/overlap-matmul.ts'
import { deriveWaits } from '../lib/program/passes/waits.ts'
import { LANES, type Program } from '../lib/program/types.ts'
import { codeOf } from './support/errors.ts'
import { findRaces, reachability } from './support/order-check.ts'
import { serialProgram } from './support/programs.ts'
import { createRandom } from './support/random.ts'
import { runSymbolic } from './support/symbolic.ts'

const kindsOf = (program: Program) => program.ops.map((op) => op.kind)
const countOf = (program: Program, kind: string) =>
  kindsOf(program).filter((other) => other === kind).length

describe('fuse-all-reduce', () => {
  it('fuses every sum that a norm follows, and not the embedding', () => {
    const fused = fuseAllReduce(serialProgram({ tp: 2, layers: 3 }))
    expect(countOf(fused, 'all_reduce_rms_norm')).toBe(6)
    expect(countOf(fused, 'add_rms_norm')).toBe(0)
    expect(fused.ops.filter((op) => op.kind === 'all_reduce').map((op) => op.label)).toEqual([
      'embed.all_reduce',
    ])
    expect(fused.buffers.some((buffer) => buffer.name.endsWith('.sum'))).toBe(false)
  })

  it('keeps the weight of a norm that comes before the add', () => {
    const program = serialProgram({ tp: 2, layers: 1, choices: { sandwichNorms: true } })
    const names = fuseAllReduce(program)
      .ops.filter((op) => op.kind === 'all_reduce_rms_norm')
      .map((op) => op.inputs[3] !== null)
    expect(names).toEqual([true, true])
  })

  it('leaves a sum alone that something else reads too', () => {
    const program = serialProgram({ tp: 2, layers: 1 })
    const sum = program.ops.find((op) => op.label === 'layers.0.norm1.all_reduce')!.outputs[0]!
    const rows = program.ops.findIndex((op) => op.kind === 'gather_rows')
    const ops = program.ops.with(rows, { ...program.ops[rows]!, inputs: [sum] })
    const fused = fuseAllReduce({ ...program, ops })
    expect(countOf(fused, 'all_reduce_rms_norm')).toBe(1)
    expect(countOf(fused, 'add_rms_norm')).toBe(1)
  })

  it('leaves a sum alone whose partial is overwritten before the norm', () => {
    const program = serialProgram({ tp: 2, layers: 1 })
    const at = program.ops.findIndex((op) => op.label === 'layers.0.norm1.all_reduce')
    const partial = program.ops[at]!.inputs[0]!
    const copy = {
      ...program.ops[at]!,
      kind: 'copy',
      label: 'overwrite',
      inputs: [program.ops[at]!.outputs[0]!],
      outputs: [partial],
    }
    const fused = fuseAllReduce({ ...program, ops: program.ops.toSpliced(at + 1, 0, copy) })
    expect(kindsOf(fused).filter((kind) => kind === 'all_reduce')).toHaveLength(2)
  })

  it('asks for a residual whole on every rank where a plain op reads it later', () => {
    const program = serialProgram({ tp: 2, layers: 1 })
    const residual = program.buffers.findIndex((buffer) => buffer.name === 'residual')
    const rows = program.ops.findIndex((op) => op.kind === 'gather_rows')
    const ops = program.ops.with(rows, { ...program.ops[rows]!, inputs: [{ buffer: residual }] })
    const forms = fuseAllReduce({ ...program, ops })
      .ops.filter((op) => op.kind === 'all_reduce_rms_norm')
      .map((op) => op.attrs.form)
    expect(forms).toEqual(['one_shot', 'one_shot'])
    const plain = fuseAllReduce(program).ops.filter((op) => op.kind === 'all_reduce_rms_norm')
    expect(plain.map((op) => op.attrs.form)).toEqual([undefined, undefined])
  })

  it('changes nothing on one rank', () => {
    const program = serialProgram({ tp: 1 })
    expect(fuseAllReduce(program)).toEqual(program)
  })
})

describe('overlap-matmul', () => {
  const serial = serialProgram({ tp: 2 })

  it('takes every sum of a layer into its matmul', () => {
    const overlapped = overlapMatmuls(serial, { form: 'all_reduce', groups: 2 })
    expect(countOf(overlapped, 'matmul_all_reduce')).toBe(4)
    // The embedding's sum has no matmul.
    expect(countOf(overlapped, 'all_reduce')).toBe(1)
    expect(countOf(overlapped, 'add_rms_norm')).toBe(4)
    const sum = overlapped.ops.find((op) => op.kind === 'matmul_all_reduce')!.outputs[1]!
    expect(overlapped.buffers[sum.buffer]!.dtype).toBe('f32')
  })

  it('scatters sums, normalises own rows, and gathers them in the next matmul', () => {
    const overlapped = overlapMatmuls(serial, { form: 'reduce_scatter', groups: 4 })
    expect(countOf(overlapped, 'matmul_reduce_scatter')).toBe(4)
    // gate_up of both layers and qkv of the second; the last norm's rows go to the logits.
    expect(countOf(overlapped, 'all_gather_matmul')).toBe(3)
    expect(countOf(overlapped, 'all_gather_rows')).toBe(1)
    const owned = overlapped.ops.filter((op) => op.kind === 'add_rms_norm')
    expect(owned.map((op) => op.attrs.owned_groups)).toEqual([4, 4, 4, 4])
  })

  it('scatters nothing where a plain op reads the residual later', () => {
    const residual = serial.buffers.findIndex((buffer) => buffer.name === 'residual')
    const rows = serial.ops.findIndex((op) => op.kind === 'gather_rows')
    const ops = serial.ops.with(rows, { ...serial.ops[rows]!, inputs: [{ buffer: residual }] })
    const program = { ...serial, ops }
    expect(overlapMatmuls(program, { form: 'reduce_scatter', groups: 2 })).toEqual(program)
    const summed = overlapMatmuls(program, { form: 'all_reduce', groups: 2 })
    expect(countOf(summed, 'matmul_all_reduce')).toBe(4)
  })

  it('leaves a product alone that something else reads too', () => {
    const at = serial.ops.findIndex((op) => op.label === 'layers.0.norm1.all_reduce')
    const partial = serial.ops[at]!.inputs[0]!
    const rows = serial.ops.findIndex((op) => op.kind === 'gather_rows')
    const ops = serial.ops.with(rows, { ...serial.ops[rows]!, inputs: [partial] })
    const overlapped = overlapMatmuls({ ...serial, ops }, { form: 'all_reduce', groups: 1 })
    expect(countOf(overlapped, 'matmul_all_reduce')).toBe(3)
    expect(countOf(overlapped, 'all_reduce')).toBe(2)
  })

  it('changes nothing on one rank, or when it is not asked for', () => {
    const alone = serialProgram({ tp: 1 })
    expect(overlapMatmuls(alone, { form: 'reduce_scatter', groups: 2 })).toEqual(alone)
    expect(overlapMatmuls(serial, undefined)).toBe(serial)
  })
})

describe('nano-batch', () => {
  it('clones ops over tokens and keeps the row tail whole', () => {
    const serial = fuseAllReduce(serialProgram({ tp: 2 }))
    const split = splitNanoBatches(serial, 3)
    const tail = ['gather_rows', 'logits', 'all_gather', 'sample']
    expect(split.parts).toBe(3)
    expect(kindsOf(split).slice(-4)).toEqual(tail)
    expect(split.ops).toHaveLength((serial.ops.length - 4) * 3 + 4)
    for (const op of split.ops) {
      const hasPart = op.outputs.some((view) => view.part !== undefined)
      expect(hasPart).toBe(!tail.includes(op.kind))
    }
  })

  it('puts the next part’s compute after each collective, so that they can overlap', () => {
    const program = compileProgram(serialProgram({ tp: 2 }), { parts: 2 })
    const before = reachability(program)
    const indexOf = (label: string) => program.ops.findIndex((op) => op.label === label)
    // The sum of part 0 waits for its own projection only; part 1's projection waits for neither.
    expect(before[indexOf('layers.0.norm1#0')]!.has(indexOf('layers.0.o#1'))).toBe(false)
    expect(before[indexOf('layers.0.o#1')]!.has(indexOf('layers.0.norm1#0'))).toBe(false)
    // Part 0 goes on to the feed-forward while part 1 is summed.
    expect(before[indexOf('layers.0.gate_up#0')]!.has(indexOf('layers.0.norm1#1'))).toBe(false)
  })

  it('lets attention see the keys of earlier parts', () => {
    const split = splitNanoBatches(serialProgram(), 2)
    const attention = split.ops.filter((op) => op.kind === 'attention')
    expect(attention.map((op) => op.inputs[1]!.upTo)).toEqual([true, true, true, true])
    expect(attention.map((op) => op.inputs[1]!.part)).toEqual([0, 1, 0, 1])
  })

  it('lets a part trail the one before it', () => {
    const split = splitNanoBatches(fuseAllReduce(serialProgram({ tp: 2 })), 2, 3)
    const labels = split.ops.map((op) => op.label)
    // Part 1 begins its first attention when part 0 is three groups further, at its feed-forward.
    const at = (label: string) => labels.indexOf(label)
    expect(at('layers.0.attention#1')).toBeGreaterThan(at('layers.0.norm1#0'))
    expect(at('layers.0.attention#1')).toBeLessThan(at('layers.0.down#0'))
    expect(labels.slice(-4).every((label) => !label.includes('#'))).toBe(true)
  })

  it('refuses other numbers of parts', () => {
    for (const parts of [0, 5, 1.5, Number.NaN]) {
      expect(codeOf(() => splitNanoBatches(serialProgram(), parts))).toBe('ERR_PROGRAM')
    }
    const split = splitNanoBatches(serialProgram(), 2)
    expect(codeOf(() => splitNanoBatches(split, 2))).toBe('ERR_PROGRAM')
  })
})

describe('lanes', () => {
  const split = splitNanoBatches(fuseAllReduce(serialProgram({ tp: 2 })), 4)
  const program = deriveWaits(split)

  it('gives every op the lane of its kind', () => {
    for (const op of program.ops) expect(op.lane).toBe(opSpec(op.kind).lane)
  })

  it('orders every dependency', () => {
    const before = reachability(program)
    findDependencies(program).forEach((dependencies, op) => {
      for (const dependency of dependencies) expect(before[op]!.has(dependency)).toBe(true)
    })
  })

  it('has no wait that another guarantees', () => {
    const full = reachability(program)
    program.ops.forEach((op, index) => {
      for (const wait of op.waits) {
        expect(program.ops[wait]!.lane).not.toBe(op.lane)
        const without = { ...op, waits: op.waits.filter((other) => other !== wait) }
        const reduced = reachability({ ...program, ops: program.ops.with(index, without) })
        expect(reduced[index]!.size).toBeLessThan(full[index]!.size)
      }
    })
  })
})

describe('compiled programs', () => {
  const layouts = [1, 2].flatMap((tp) => [1, 2, 3, 4].map((parts) => ({ tp, parts })))
  const random = createRandom(7)
  const numTokens = 32
  const rows = [0, 5, 31]

  /** Ascending row numbers; parts may be empty. */
  const boundsOf = (parts: number) => [
    0,
    ...Array.from({ length: parts - 1 }, () => random.int(0, numTokens)).sort((a, b) => a - b),
    numTokens,
  ]

  for (const sandwichNorms of [false, true]) {
    for (const { tp, parts } of layouts) {
      const name = `tp ${tp}, ${parts} parts${sandwichNorms ? ', norms before the add' : ''}`
      it(`${name}: every allowed order computes the serial result`, () => {
        const serial = serialProgram({ tp, choices: { sandwichNorms } })
        // Each buffer in bytes of its own.
        let arenaBytes = 0
        const apart = serial.buffers.map((buffer) => {
          if (buffer.space !== 'arena') return buffer
          arenaBytes += 2 ** 16
          return { ...buffer, offset: arenaBytes - 2 ** 16 }
        })
        const whole = { numTokens, rows, bounds: [0, numTokens] }
        const expected = runSymbolic({ ...serial, buffers: apart, arenaBytes }, whole)
        expect(new Set(expected).size).toBe(rows.length)
        const compiled = compileProgram(serial, { parts })
        for (let run = 0; run < 20; run++) {
          const step = { numTokens, rows, bounds: boundsOf(parts) }
          expect(runSymbolic(compiled, step, run === 0 ? undefined : random)).toEqual(expected)
        }
      })

      it(`${name}: so does every way of staggering and of sharing lanes`, () => {
        const serial = serialProgram({ tp, choices: { sandwichNorms } })
        const plain = compileProgram(serial, { parts: 1 })
        const expected = runSymbolic(plain, { numTokens, rows, bounds: [0, numTokens] })
        for (const lanes of LANE_MODES) {
          for (const stagger of [0, 1, 2, 5]) {
            const compiled = compileProgram(serial, { parts, stagger, lanes })
            expect(findRaces(compiled)).toEqual([])
            const step = { numTokens, rows, bounds: boundsOf(parts) }
            expect(runSymbolic(compiled, step, random)).toEqual(expected)
          }
        }
      })

      it(`${name}: so do matmuls that overlap with their sums`, () => {
        const serial = serialProgram({ tp, choices: { sandwichNorms } })
        const plain = compileProgram(serial, { parts: 1 })
        const expected = runSymbolic(plain, { numTokens, rows, bounds: [0, numTokens] })
        for (const form of ['all_reduce', 'reduce_scatter'] as const) {
          const compiled = compileProgram(serial, { parts, overlap: { form, groups: 2 } })
          expect(findRaces(compiled)).toEqual([])
          const step = { numTokens, rows, bounds: boundsOf(parts) }
          expect(runSymbolic(compiled, step, random)).toEqual(expected)
        }
      })

      it(`${name}: conflicting bytes are ordered`, () => {
        const compiled = compileProgram(serialProgram({ tp, choices: { sandwichNorms } }), {
          parts,
        })
        expect(findRaces(compiled)).toEqual([])
      })
    }
  }

  it('the checks above notice a missing wait', () => {
    const compiled = compileProgram(serialProgram({ tp: 2 }), { parts: 2 })
    const index = compiled.ops.findIndex((op) => op.label === 'layers.1.norm1#1')
    const ops = compiled.ops.with(index, { ...compiled.ops[index]!, waits: [] })
    expect(findRaces({ ...compiled, ops }).length).toBeGreaterThan(0)
  })

  it('the checks above notice a wrong memory plan', () => {
    const compiled = compileProgram(serialProgram({ tp: 2 }), { parts: 2 })
    // Planned for a serial order: what one lane does, while the program has three.
    const oneLane = {
      ...compiled,
      ops: compiled.ops.map((op) => ({ ...op, lane: LANES[0]!, waits: [] })),
    }
    const tight = planMemory(oneLane)
    const mixed = { ...compiled, buffers: tight.buffers, arenaBytes: tight.arenaBytes }
    expect(findRaces(mixed).length).toBeGreaterThan(0)
  })
})
