/**
 * The runtime through the addon: loading, running, refusing, failing and closing. Lifetimes over
 * threads and processes are in native-lifetime.test.ts, random damage in native-fuzz.test.ts.
 */

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { LoadProgress, NativeRuntime } from '../lib/native/binding.ts'
import { loadBinding, toEngineError } from '../lib/native/load.ts'
import type { WeightManifest, WeightPiece } from '../lib/weights/types.ts'
import { errorOf } from './support/errors.ts'
import {
  HIDDEN,
  openRuntime,
  rejection,
  runtimeOptions,
  stallOp,
  sumOp,
  sumOverRanks,
  tokensStep,
  twoBufferProgram,
} from './support/runtime-programs.ts'

describe('descriptions', () => {
  test('the CPU is described, and why CUDA is not there', () => {
    const { devices, missing, build } = loadBinding().describeDevices()
    const cpu = devices.find(({ name }) => name === 'cpu')
    expect(cpu?.backend).toBe('cpu')
    expect(cpu?.units).toBeGreaterThan(0)
    expect(cpu?.memoryBytes).toBeGreaterThan(0)
    expect(cpu?.freeMemoryBytes).toBeLessThanOrEqual(cpu?.memoryBytes ?? 0)
    expect(devices.some(({ backend }) => backend === 'cuda') || 'cuda' in missing).toBe(true)
    expect(build.version).toMatch(/^\d+\.\d+\.\d+/)
  })

  test('collectives are marked', () => {
    const collectives = loadBinding()
      .describeOps()
      .filter(({ collective }) => collective)
      .map(({ name }) => name)
    expect(collectives).toContain('all_reduce_rms_norm')
    expect(collectives).not.toContain('matmul')
  })
})

describe('options', () => {
  const codeOf = (options: unknown) =>
    errorOf(() => {
      try {
        Reflect.construct(loadBinding().Runtime, [options])
      } catch (error) {
        throw toEngineError(error)
      }
    }).code

  test.each([
    ['no options', undefined],
    ['no ranks', { ...runtimeOptions(1), ranks: [] }],
    ['ranks that are no objects', { ...runtimeOptions(1), ranks: ['cpu'] }],
    ['tp that does not divide the ranks', { ...runtimeOptions(3), tp: 2 }],
    ['a negative heap', { ...runtimeOptions(1), heapBytes: -1 }],
    ['half a byte', { ...runtimeOptions(1), heapBytes: 0.5 }],
    ['too many threads', { ...runtimeOptions(1), threadsPerRank: 1e6 }],
    ['no timeout', { ...runtimeOptions(1), waitTimeoutMs: 0 }],
    ['an unknown instruction set', { ...runtimeOptions(1), cpuIsa: 'mmx' }],
  ])('%s: ERR_USAGE', (_, options) => expect(codeOf(options)).toBe('ERR_USAGE'))

  test('a device that is not there: ERR_NO_DEVICE', () =>
    expect(codeOf({ ...runtimeOptions(1), ranks: [{ device: 'abacus:0' }] })).toBe('ERR_NO_DEVICE'))

  test('a heap beyond the address space: ERR_OUT_OF_MEMORY or ERR_USAGE', () =>
    expect(['ERR_OUT_OF_MEMORY', 'ERR_USAGE']).toContain(
      codeOf({ ...runtimeOptions(8), heapBytes: 2 ** 44 + 1 }),
    ))
})

describe('running', () => {
  test.each([1, 2, 3, 8])('a sum over %i ranks', async (world) => {
    const runtime = openRuntime(world)
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(world, [sumOp()])))
    for (const numTokens of [1, 5, 16]) {
      for (const y of await sumOverRanks(runtime, program, world, numTokens)) {
        expect(y).toEqual(new Float32Array(numTokens * HIDDEN).fill((world * (world + 1)) / 2))
      }
    }
    await runtime.close()
  })

  test('calls take effect in order without being awaited, each promise settles once', async () => {
    const runtime = openRuntime(2)
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(2, [sumOp()])))
    const ones = new Uint8Array(new Float32Array(4 * HIDDEN).fill(1).buffer)
    const twos = new Uint8Array(new Float32Array(4 * HIDDEN).fill(2).buffer)
    const reads: Promise<Uint8Array>[] = []
    const others: Promise<unknown>[] = []
    for (const bytes of [ones, twos, ones]) {
      others.push(runtime.write(program, 'x', 0, bytes), runtime.write(program, 'x', 1, bytes))
      others.push(runtime.submit(program, tokensStep(4)), runtime.submit(program, tokensStep(4)))
      reads.push(runtime.read(program, 'y', 1))
    }
    const sums = (await Promise.all(reads)).map((bytes) => new Float32Array(bytes.buffer)[0])
    expect(sums).toEqual([2, 4, 2])
    await Promise.all(others)
    await runtime.close()
  })

  test('a result carries its step id and timings', async () => {
    const runtime = openRuntime(1)
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(1, [sumOp()])))
    const result = await runtime.submit(program, tokensStep(3))
    expect(result[1]).toBe(1)
    await runtime.close()
  })

  test('wrong arguments reject with ERR_USAGE', async () => {
    const runtime = openRuntime(1)
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(1, [sumOp()])))
    const calls = [
      runtime.submit(program + 1, tokensStep(1)),
      runtime.submit(-1, tokensStep(1)),
      Reflect.apply(runtime.submit, runtime, [program, new Float32Array(4)]),
      Reflect.apply(runtime.loadProgram, runtime, [7]),
      Reflect.apply(runtime.loadWeights, runtime, ['{}', 'not a function']),
      runtime.read(program, 'z', 0),
      runtime.read(program, 'x', 1),
      runtime.read(-1, 'x', 0),
      runtime.write(program, 'x', 0, new Uint8Array(1 << 20)),
    ]
    for (const call of calls) expect((await rejection(call)).code).toBe('ERR_USAGE')
    await runtime.close()
  })
})

describe('failing ranks', () => {
  test('a late rank is waited for', async () => {
    const runtime = openRuntime(3)
    const ops = [stallOp(1, 60), sumOp()]
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(3, ops)))
    const [y] = await sumOverRanks(runtime, program, 3, 2)
    expect(y).toEqual(new Float32Array(2 * HIDDEN).fill(6))
    await runtime.close()
  })

  test('a dead rank: ERR_RANK_TIMEOUT with rank, op and step; a fresh runtime works', async () => {
    const runtime = openRuntime(3, { waitTimeoutMs: 150 })
    const dead = await runtime.loadProgram(
      JSON.stringify(twoBufferProgram(3, [stallOp(2, -1), sumOp()])),
    )
    const healthy = await runtime.loadProgram(JSON.stringify(twoBufferProgram(3, [sumOp()])))
    const first = runtime.submit(dead, tokensStep(2))
    const queued = runtime.submit(healthy, tokensStep(2))
    for (const promise of [first, queued]) {
      const { code, rank, op, step } = await rejection(promise)
      expect({ code, rank, op, step }).toEqual({
        code: 'ERR_RANK_TIMEOUT',
        rank: 2,
        op: 'sum',
        step: 1,
      })
    }
    // Poisoned: refused at once, with the same cause.
    expect((await rejection(runtime.submit(healthy, tokensStep(2)))).rank).toBe(2)
    await runtime.close()

    const fresh = openRuntime(3)
    const program = await fresh.loadProgram(JSON.stringify(twoBufferProgram(3, [sumOp()])))
    expect((await sumOverRanks(fresh, program, 3, 1))[0]).toEqual(new Float32Array(HIDDEN).fill(6))
    await fresh.close()
  })
})

describe('closing', () => {
  test('lets submitted steps finish, refuses later calls, and may be called twice', async () => {
    const runtime = openRuntime(2)
    const ops = [stallOp(0, 80), sumOp()]
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(2, ops)))
    const steps = [runtime.submit(program, tokensStep(1)), runtime.submit(program, tokensStep(1))]
    const closing = [runtime.close(), runtime.close()]
    expect((await rejection(runtime.submit(program, tokensStep(1)))).code).toBe('ERR_CLOSED')
    expect((await rejection(runtime.loadProgram('{}'))).code).toBe('ERR_CLOSED')
    expect((await rejection(runtime.read(program, 'x', 0))).code).toBe('ERR_CLOSED')
    for (const result of await Promise.all(steps)) expect(result[1]).toBe(1)
    await Promise.all(closing)
    await runtime.close()
  })

  test('a step that outlasts the wait timeout fails with ERR_CLOSED', async () => {
    const runtime = openRuntime(1, { waitTimeoutMs: 50 })
    const program = await runtime.loadProgram(
      JSON.stringify(twoBufferProgram(1, [stallOp(0, 30_000)])),
    )
    const step = rejection(runtime.submit(program, tokensStep(1)))
    await runtime.close()
    expect((await step).code).toBe('ERR_CLOSED')
  })
})

describe('weights', () => {
  let folder: string
  let file: string
  const ROWS = 33
  const COLS = 20
  const values = Float32Array.from({ length: ROWS * COLS }, (_, index) => index / 8)

  beforeAll(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'nanoweave-runtime-'))
    file = path.join(folder, 'weights.bin')
    writeFileSync(file, values)
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  const whole: WeightPiece = {
    file: 0,
    offset: 0,
    dtype: 'f32',
    rows: ROWS,
    cols: COLS,
    rowStart: 0,
    rowCount: ROWS,
    colStart: 0,
    colCount: COLS,
    destRow: 0,
    destCol: 0,
  }
  const scaled = (format: string, offset: number, scales = 'u8'): WeightPiece => ({
    ...whole,
    ...{ dtype: 'u8', rows: 20, cols: 32, rowCount: 20, colCount: 20 },
    scales: { format: format as 'mxfp4', dtype: scales as 'u8', file: 0, offset },
  })
  const manifestOf = (overrides: {
    pieces?: WeightPiece[]
    shape?: number[]
    layout?: 'plain' | 'matmul'
    dtype?: 'f32' | 'bf16' | 'i32'
    path?: string
    bytes?: number
  }): WeightManifest => ({
    version: 1,
    files: [{ path: overrides.path ?? file, bytes: overrides.bytes ?? values.byteLength }],
    buffers: [
      {
        name: 'w',
        space: 'weight',
        dtype: overrides.dtype ?? 'f32',
        shape: overrides.shape ?? [ROWS, COLS],
        layout: overrides.layout ?? 'plain',
        ranks: [overrides.pieces ?? [whole]],
      },
    ],
  })
  const load = (runtime: NativeRuntime, manifest: unknown) =>
    runtime.loadWeights(JSON.stringify(manifest))

  test.each(['plain', 'matmul'] as const)(
    'a rectangle lands where it should, %s',
    async (layout) => {
      const runtime = openRuntime(1)
      const piece = { ...whole, rowStart: 3, rowCount: 17, colStart: 5, colCount: 11 }
      await load(
        runtime,
        manifestOf({
          layout,
          shape: [24, 16],
          pieces: [{ ...piece, destRow: 4, destCol: 2, add: 1 }],
        }),
      )
      const got = new Float32Array((await runtime.read(-1, 'w', 0)).buffer)
      const wanted = new Float32Array(24 * 16)
      for (let row = 0; row < 17; row++)
        for (let col = 0; col < 11; col++)
          wanted[(4 + row) * 16 + 2 + col] = values[(3 + row) * COLS + 5 + col]! + 1
      expect(got).toEqual(wanted)
      await runtime.close()
    },
  )

  /** A source of many tiles, transposed or not, every second row or third column of it. */
  test.each([
    { transposed: false, rowStep: 1, colStep: 3 },
    { transposed: false, rowStep: 2, colStep: 1 },
    { transposed: true, rowStep: 1, colStep: 1 },
    { transposed: true, rowStep: 2, colStep: 1 },
    { transposed: true, rowStep: 3, colStep: 2 },
  ])('steps of a large source: $transposed $rowStep $colStep', async (steps) => {
    const [rows, cols] = [1501, 1301]
    const content = Float32Array.from({ length: rows * cols }, (_, index) => (index * 7919) % 65521)
    const large = path.join(folder, 'large.bin')
    writeFileSync(large, content)
    const [rowCount, colCount] = [700 / steps.rowStep, 640 / steps.colStep].map(Math.floor)
    const piece = {
      ...whole,
      ...steps,
      ...{ rows, cols, rowStart: 41, colStart: 3, rowCount: rowCount!, colCount: colCount! },
    }
    const shape = [rowCount!, colCount!]
    for (const layout of ['plain', 'matmul'] as const) {
      const runtime = openRuntime(1)
      const of = { path: large, bytes: content.byteLength, pieces: [piece], shape, layout }
      await load(runtime, manifestOf(of))
      const got = new Float32Array((await runtime.read(-1, 'w', 0)).buffer)
      const wanted = Float32Array.from({ length: got.length }, (_, index) => {
        const row = 41 + Math.floor(index / colCount!) * steps.rowStep
        const col = 3 + (index % colCount!) * steps.colStep
        return content[steps.transposed ? col * rows + row : row * cols + col]!
      })
      expect(Buffer.compare(Buffer.from(got.buffer), Buffer.from(wanted.buffer))).toBe(0)
      await runtime.close()
    }
  })

  test('progress ends with all bytes', async () => {
    const runtime = openRuntime(1)
    const seen: LoadProgress[] = []
    await runtime.loadWeights(JSON.stringify(manifestOf({})), (progress) => seen.push(progress))
    expect(seen.at(-1)).toEqual({ bytesDone: values.byteLength, bytesTotal: values.byteLength })
    await runtime.close()
  })

  test('an exception of the progress callback rejects the load and nothing else', async () => {
    const runtime = openRuntime(1)
    const thrown = new Error('from the callback')
    const loading = runtime.loadWeights(JSON.stringify(manifestOf({})), () => {
      throw thrown
    })
    await expect(loading).rejects.toBe(thrown)
    await runtime.close()
  })

  test.each([
    ['a missing file', { path: '/nonexistent/weights.bin' }, 'ERR_IO'],
    ['a folder', { path: os.tmpdir() }, 'ERR_IO'],
    ['another size than the header saw', { bytes: values.byteLength + 4 }, 'ERR_SAFETENSORS'],
    ['a source past the end', { pieces: [{ ...whole, offset: 4 }] }, 'ERR_SAFETENSORS'],
    ['rows outside the source', { pieces: [{ ...whole, rowStart: 1 }] }, 'ERR_PROGRAM'],
    [
      'steps outside the source',
      { pieces: [{ ...whole, rowCount: 2, rowStep: 33 }] },
      'ERR_PROGRAM',
    ],
    ['steps beyond any source', { pieces: [{ ...whole, colStep: 2 ** 40 }] }, 'ERR_PROGRAM'],
    ['a step of nothing', { pieces: [{ ...whole, rowStep: 0 }] }, 'ERR_PROGRAM'],
    ['unknown scales', { pieces: [scaled('int8', 0)] }, 'ERR_PROGRAM'],
    ['scales of an unknown dtype', { pieces: [scaled('e4m3', 0, 'f64')] }, 'ERR_PROGRAM'],
    ['scales of half floats', { pieces: [scaled('e4m3', 0, 'f16')] }, 'ERR_PROGRAM'],
    ['exponents of floats', { pieces: [scaled('mxfp4', 0, 'bf16')] }, 'ERR_PROGRAM'],
    ['bf16 scales past the end', { pieces: [scaled('e4m3', 2640, 'bf16')] }, 'ERR_SAFETENSORS'],
    ['f32 scales past the end', { pieces: [scaled('e4m3', 2638, 'f32')] }, 'ERR_SAFETENSORS'],
    ['scales past the end', { pieces: [scaled('mxfp4', 2630)] }, 'ERR_SAFETENSORS'],
    ['half a block', { pieces: [{ ...scaled('mxfp4', 0), cols: 20 }] }, 'ERR_PROGRAM'],
    [
      'half bytes transposed',
      { pieces: [{ ...scaled('mxfp4', 0), transposed: true }] },
      'ERR_PROGRAM',
    ],
    ['columns outside the target', { pieces: [{ ...whole, destCol: 1 }] }, 'ERR_PROGRAM'],
    ['floats into integers', { dtype: 'i32' as const }, 'ERR_PROGRAM'],
    ['more memory than there is', { shape: [1 << 20, 1 << 20] }, 'ERR_OUT_OF_MEMORY'],
  ])('%s', async (_, overrides, code) => {
    const runtime = openRuntime(1)
    expect((await rejection(load(runtime, manifestOf(overrides)))).code).toBe(code)
    await load(runtime, manifestOf({})) // nothing of the failed load is left
    expect((await rejection(load(runtime, manifestOf({})))).code).toBe('ERR_USAGE') // twice
    await runtime.close()
  })

  test('a file that is cut after its header was read: ERR_SAFETENSORS', async () => {
    const cut = path.join(folder, 'cut.bin')
    writeFileSync(cut, values)
    truncateSync(cut, 100)
    const runtime = openRuntime(1)
    const error = await rejection(load(runtime, manifestOf({ path: cut })))
    expect(error.code).toBe('ERR_SAFETENSORS')
    await runtime.close()
  })
})
