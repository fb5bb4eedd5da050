/** Op table, builder, validation, hazards, and snapshots of compiled programs. */

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { compileModel, loadModel } from '../lib/models/index.ts'
import { checkOpTable, diffOpTable, OPS } from '../lib/ops/index.ts'
import { moeRoute } from '../lib/ops/moe-route.ts'
import { ProgramBuilder } from '../lib/program/builder.ts'
import { compileProgram } from '../lib/program/compile.ts'
import { formatProgram } from '../lib/program/format.ts'
import { findDependencies } from '../lib/program/hazards.ts'
import type { Program, ProgramBuffer, ProgramOp } from '../lib/program/types.ts'
import { validateProgram } from '../lib/program/validate.ts'
import { codeOf, errorOf } from './support/errors.ts'
import { SMALL_LIMITS, serialProgram } from './support/programs.ts'

describe('op table', () => {
  const described = OPS.map(({ name, inputs, outputs, attrs, collective }) => ({
    name,
    inputs,
    outputs,
    attrs,
    collective,
  }))

  it('lists the ops of docs/ops.md, in its order', () => {
    const table = readFileSync(new URL('../docs/ops.md', import.meta.url), 'utf8')
    const names = [...table.matchAll(/^\| `(\w+)` \|/gm)].map((match) => match[1])
    expect(OPS.map((op) => op.name)).toEqual(names)
  })

  it('says which ops docs/ops.md calls collective', () => {
    const table = readFileSync(new URL('../docs/ops.md', import.meta.url), 'utf8')
    const collective = [...table.matchAll(/^\| `(\w+)` \|.*\bCollective\b.*$/gm)].map((m) => m[1])
    expect(OPS.filter((op) => op.collective).map((op) => op.name)).toEqual(collective)
  })

  it('accepts the same table and names every difference', () => {
    checkOpTable(described)
    const without = described.slice(0, -1)
    expect(diffOpTable(without)).toHaveLength(1)
    expect(diffOpTable([...described].reverse()).length).toBeGreaterThan(0)
    expect(diffOpTable([...described, { ...described[0]!, name: 'other' }])).toHaveLength(1)
    const changes = [
      { inputs: ['x'] },
      { outputs: [] },
      { attrs: { scale: 'number' } },
      { collective: true },
    ]
    for (const change of changes) {
      const changed = described.with(0, { ...described[0]!, ...change })
      expect(diffOpTable(changed)).toHaveLength(1)
      expect(codeOf(() => checkOpTable(changed))).toBe('ERR_INTERNAL')
    }
  })
})

describe('builder', () => {
  it('refuses two buffers of one name and unknown ops', () => {
    const builder = new ProgramBuilder({ name: 'x', world: 1, tp: 1, limits: SMALL_LIMITS })
    builder.arena('a', 'f32', ['T', 8])
    expect(codeOf(() => builder.arena('a', 'f32', ['T', 8]))).toBe('ERR_PROGRAM')
    const draft = { kind: 'fft', inputs: [], outputs: [], attrs: {} }
    expect(codeOf(() => builder.add('fft', draft))).toBe('ERR_PROGRAM')
  })
})

describe('validateProgram', () => {
  const program = compileProgram(serialProgram({ tp: 2 }), { parts: 2 })
  const withOp = (label: string, change: (op: ProgramOp) => Partial<ProgramOp>): Program => {
    const index = program.ops.findIndex((op) => op.label === label)
    expect(index).toBeGreaterThanOrEqual(0)
    const op = program.ops[index]!
    return { ...program, ops: program.ops.with(index, { ...op, ...change(op) }) }
  }
  const withBuffer = (name: string, change: Partial<ProgramBuffer>): Program => {
    const index = program.buffers.findIndex((buffer) => buffer.name === name)
    expect(index).toBeGreaterThanOrEqual(0)
    const buffer = { ...program.buffers[index]!, ...change }
    return { ...program, buffers: program.buffers.with(index, buffer) }
  }

  it('accepts compiled programs', () => {
    validateProgram(program)
    validateProgram(JSON.parse(JSON.stringify(program)))
  })

  const broken: Record<string, () => Program> = {
    'another version': () => ({ ...program, version: 2 as 1 }),
    'tp that does not divide world': () => ({ ...program, world: 3 }),
    'too many ranks': () => ({ ...program, world: 128, tp: 2 }),
    'five parts': () => ({ ...program, parts: 5 }),
    'no tokens': () => ({ ...program, limits: { ...program.limits, maxTokens: 0 } }),
    'more KV slots than int32': () => ({
      ...program,
      limits: { ...program.limits, maxBlocksPerSeq: 2 ** 29 },
    }),
    'two buffers of one name': () => withBuffer('rows', { name: 'residual' }),
    'an unknown dtype': () => withBuffer('rows', { dtype: 'f8' as 'f16' }),
    'a dimension of zero': () => withBuffer('rows', { shape: ['R', 0] }),
    'a symbol in the second place': () => withBuffer('rows', { shape: ['R', 'T'] }),
    'a weight of symbolic size': () => withBuffer('head.weight', { shape: ['T', 64] }),
    'an offset past the arena': () => withBuffer('rows', { offset: program.arenaBytes }),
    'a misaligned offset': () => withBuffer('rows', { offset: 32 }),
    'an offset outside the arena': () => withBuffer('head.weight', { offset: 0 }),
    'a matmul layout on an activation': () => withBuffer('rows', { layout: 'matmul' }),
    'a KV cache of another shape': () => withBuffer('layers.0.kv', { shape: [1, 2, 1, 8, 16] }),
    'an op of unknown kind': () => withOp('rows', () => ({ kind: 'fft' })),
    'an op on an unknown lane': () => withOp('rows', () => ({ lane: 'disk' as 'memory' })),
    'two ops of one label': () => withOp('rows', () => ({ label: 'logits' })),
    'a missing operand': () => withOp('layers.0.qkv#0', (op) => ({ inputs: op.inputs.slice(1) })),
    'a required input that is absent': () =>
      withOp('layers.0.qkv#0', (op) => ({ inputs: op.inputs.with(1, null) })),
    'a buffer that is not there': () => withOp('rows', () => ({ inputs: [{ buffer: 10_000 }] })),
    'a negative buffer': () => withOp('rows', () => ({ inputs: [{ buffer: -1 }] })),
    'a part that is not there': () =>
      withOp('layers.0.o#1', (op) => ({ outputs: [{ ...op.outputs[0]!, part: 2 }] })),
    'different parts in one op': () =>
      withOp('layers.0.o#1', (op) => ({ outputs: [{ ...op.outputs[0]!, part: 0 }] })),
    'a part of rows that reach the logits': () =>
      withOp('logits', (op) => ({ outputs: [{ ...op.outputs[0]!, part: 0 }] })),
    'gathering from a part': () =>
      withOp('rows', (op) => ({ inputs: [{ ...op.inputs[0]!, part: 0 }] })),
    'upTo on an activation': () =>
      withOp('layers.0.o#1', (op) => ({
        inputs: op.inputs.with(0, { ...op.inputs[0]!, upTo: true }),
      })),
    'writing a weight': () =>
      withOp('rows', () => ({
        outputs: [{ buffer: program.buffers.findIndex((b) => b.space === 'weight') }],
      })),
    'a residual that is not in place': () =>
      withOp('layers.0.norm1#0', (op) => ({ outputs: op.outputs.with(1, op.outputs[0]!) })),
    'an unknown attribute': () => withOp('sample', (op) => ({ attrs: { ...op.attrs, top: 1 } })),
    'a missing attribute': () => withOp('sample', () => ({ attrs: {} })),
    'an attribute of another type': () => withOp('sample', () => ({ attrs: { vocab_size: '9' } })),
    'a number that is not finite': () =>
      withOp('layers.0.attention#0', (op) => ({ attrs: { ...op.attrs, scale: Number.NaN } })),
    'an unknown form': () =>
      withOp('layers.0.norm1#0', (op) => ({ attrs: { ...op.attrs, form: 'ring' } })),
    'sampling past the vocabulary': () => withOp('sample', () => ({ attrs: { vocab_size: 1e6 } })),
    'heads that the query does not have': () =>
      withOp('layers.0.attention#0', (op) => ({ attrs: { ...op.attrs, heads: 8 } })),
    'a window of zero': () =>
      withOp('layers.0.attention#0', (op) => ({ attrs: { ...op.attrs, window: 0 } })),
    'a wait for a later op': () => withOp('rows', () => ({ waits: [program.ops.length - 1] })),
    'waits out of order': () => withOp('rows', () => ({ waits: [5, 4] })),
    'a wait for the own lane': () =>
      withOp('rows', () => ({ waits: [program.ops.findIndex((op) => op.lane === 'memory')] })),
  }
  for (const [name, make] of Object.entries(broken)) {
    it(`refuses ${name}`, () => {
      expect(codeOf(() => validateProgram(make()))).toBe('ERR_PROGRAM')
    })
  }

  it('refuses a route to more experts than the kept groups have', () => {
    const routed = (topGroups: number): Program => {
      const builder = new ProgramBuilder({ name: 'x', world: 1, tp: 1, limits: SMALL_LIMITS })
      const operands = {
        logits: builder.arena('logits', 'f32', ['T', 16]),
        ids: builder.arena('ids', 'i32', ['T', 6]),
        weights: builder.arena('weights', 'f32', ['T', 6]),
      }
      const attrs = { score: 'softmax', groups: 4, top_groups: topGroups } as const
      builder.add('route', moeRoute(operands, attrs))
      return builder.build()
    }
    validateProgram(routed(2))
    expect(codeOf(() => validateProgram(routed(1)))).toBe('ERR_PROGRAM')
  })

  it('names the op that is wrong', () => {
    const wrong = withOp('layers.1.down#1', (op) => ({ inputs: op.inputs.with(1, op.inputs[0]!) }))
    expect(errorOf(() => validateProgram(wrong)).op).toBe('layers.1.down#1')
  })
})

describe('findDependencies', () => {
  /** Ops of kind copy over views written `buffer` or `buffer#part`. */
  function dependenciesOf(...copies: readonly (readonly [string, string])[]): number[][] {
    const names = [...new Set(copies.flat().map((view) => view.split('#')[0]!))]
    const viewOf = (text: string) => {
      const [name, part] = text.split('#')
      const buffer = names.indexOf(name!)
      if (part === undefined) return { buffer }
      return part.startsWith('..')
        ? { buffer, part: Number(part.slice(2)), upTo: true }
        : { buffer, part: Number(part) }
    }
    return findDependencies({
      ...serialProgram(),
      parts: 4,
      buffers: names.map((name) => ({
        name,
        space: name.startsWith('kv') ? 'kv' : 'arena',
        dtype: 'f32',
        shape: ['T', 8],
      })),
      ops: copies.map(([x, y], index) => ({
        kind: 'copy',
        label: `${index}`,
        lane: 'memory',
        inputs: [viewOf(x)],
        outputs: [viewOf(y)],
        attrs: {},
        waits: [],
      })),
    })
  }

  it('read after write', () => {
    expect(dependenciesOf(['a', 'b'], ['b', 'c'])).toEqual([[], [0]])
  })
  it('write after read', () => {
    expect(dependenciesOf(['a', 'b'], ['c', 'a'])).toEqual([[], [0]])
  })
  it('write after write', () => {
    expect(dependenciesOf(['a', 'b'], ['c', 'b'])).toEqual([[], [0]])
  })
  it('two reads are free', () => {
    expect(dependenciesOf(['a', 'b'], ['a', 'c'])).toEqual([[], []])
  })
  it('parts are disjoint', () => {
    expect(dependenciesOf(['a#0', 'b#0'], ['a#1', 'b#1'], ['b#1', 'c#1'])).toEqual([[], [], [1]])
  })
  it('the whole meets every part', () => {
    expect(dependenciesOf(['a#0', 'b#0'], ['a#1', 'b#1'], ['b', 'c'])).toEqual([[], [], [0, 1]])
    expect(dependenciesOf(['a', 'b'], ['b#2', 'c#2'], ['d#2', 'b#2'])).toEqual([[], [0], [0, 1]])
    expect(dependenciesOf(['a#1', 'b#1'], ['c', 'a'])).toEqual([[], [0]])
  })
  it('a write of the whole stands for what came before', () => {
    expect(dependenciesOf(['a#0', 'b#0'], ['c', 'b'], ['b#0', 'd#0'])).toEqual([[], [0], [1]])
  })
  it('upTo reads earlier parts and not later ones', () => {
    const writes = [0, 1, 2].map((part) => [`a#${part}`, `kv#${part}`] as const)
    expect(dependenciesOf(...writes, ['kv#..1', 'b#1'])).toEqual([[], [], [], [0, 1]])
  })
  it('a KV cache is written without waiting for its readers', () => {
    const found = dependenciesOf(['a#0', 'kv#0'], ['kv#..1', 'b#1'], ['c#0', 'kv#0'])
    expect(found).toEqual([[], [0], []])
  })
  it('in place: an op does not depend on itself', () => {
    expect(dependenciesOf(['a', 'a'], ['a', 'a'])).toEqual([[], [0]])
  })
})

describe('snapshots', () => {
  const limits = {
    maxTokens: 64,
    maxRows: 16,
    maxSeqs: 4,
    numBlocks: 32,
    blockSize: 16,
    maxBlocksPerSeq: 32,
    numSlots: 4,
  }
  /** The first two layers of a golden checkpoint. */
  function snapshot(family: string, tensorParallel: number, parts: number): string {
    const model = loadModel(new URL(`fixtures/golden/${family}`, import.meta.url).pathname)
    const two = { ...model, spec: { ...model.spec, layers: model.spec.layers.slice(0, 2) } }
    const { program } = compileModel(two, { tensorParallel, parts, precision: 'auto', limits })
    return formatProgram(program)
  }
  for (const tp of [1, 2]) {
    for (const parts of [1, 2, 4]) {
      it(`llama, tp ${tp}, ${parts} parts`, async () => {
        const file = `fixtures/programs/llama-tp${tp}-parts${parts}.txt`
        await expect(snapshot('llama', tp, parts)).toMatchFileSnapshot(file)
      })
    }
  }
  it('gemma2, tp 2, 2 parts', async () => {
    const file = 'fixtures/programs/gemma2-tp2-parts2.txt'
    await expect(snapshot('gemma2-softcap', 2, 2)).toMatchFileSnapshot(file)
  })
})
