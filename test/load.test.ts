/** Finding and loading the addon, and its errors. */

import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { EngineError } from '../lib/errors.ts'
import { loadBinding, resolveBinary, toEngineError } from '../lib/native/load.ts'

let scratch: string

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'nanoweave-load-'))
})
afterAll(() => rm(scratch, { recursive: true, force: true }))

describe('loadBinding', () => {
  it('gives one addon that describes a CPU', () => {
    const binding = loadBinding()
    expect(loadBinding()).toBe(binding)
    const { devices, build } = binding.describeDevices()
    const cpu = devices.find((device) => device.name === 'cpu')!
    expect(cpu.backend).toBe('cpu')
    expect(cpu.units).toBeGreaterThan(0)
    expect(cpu.memoryBytes).toBeGreaterThanOrEqual(cpu.freeMemoryBytes)
    expect(build.napi).toBe('8')
  })

  it('loads in worker threads, several at once, and unloads with them', async () => {
    const code = `
      const { parentPort, workerData } = require('node:worker_threads')
      parentPort.postMessage(require(workerData).describeDevices().devices[0].name)`
    const names = await Promise.all(
      Array.from(
        { length: 4 },
        () =>
          new Promise((resolve, reject) => {
            const worker = new Worker(code, { eval: true, workerData: resolveBinary() })
            let name: unknown
            worker.once('message', (message) => {
              name = message
            })
            worker.once('error', reject)
            worker.once('exit', (exitCode) => resolve(exitCode === 0 ? name : exitCode))
          }),
      ),
    )
    expect(names).toEqual(['cpu', 'cpu', 'cpu', 'cpu'])
    expect(loadBinding().describeOps().length).toBeGreaterThan(0)
  })
})

describe('with another binary', () => {
  // The module remembers the addon it loaded: each case gets a fresh one.
  beforeEach(() => vi.resetModules())
  afterEach(() => vi.unstubAllEnvs())

  it('a missing file is ERR_NO_BINARY', async () => {
    vi.stubEnv('NANOWEAVE_BINARY', join(scratch, 'absent.node'))
    const load = await import('../lib/native/load.ts')
    expect(() => load.loadBinding()).toThrowError(
      expect.objectContaining({ code: 'ERR_NO_BINARY' }),
    )
  })

  it('a file that is no addon is ERR_NO_BINARY, with the cause', async () => {
    const file = join(scratch, 'text.node')
    await writeFile(file, 'not a shared object')
    vi.stubEnv('NANOWEAVE_BINARY', file)
    const load = await import('../lib/native/load.ts')
    expect(() => load.loadBinding()).toThrowError(
      expect.objectContaining({ code: 'ERR_NO_BINARY', cause: expect.anything() }),
    )
  })

  it('an addon with other ops is refused', async () => {
    const file = join(scratch, 'other.cjs')
    await writeFile(file, 'exports.describeOps = () => []\n')
    vi.stubEnv('NANOWEAVE_BINARY', file)
    const load = await import('../lib/native/load.ts')
    expect(() => load.loadBinding()).toThrowError(expect.objectContaining({ code: 'ERR_INTERNAL' }))
  })
})

describe('toEngineError', () => {
  it('keeps an EngineError, and the fields of an addon error', () => {
    const original = new EngineError('ERR_USAGE', 'no')
    expect(toEngineError(original)).toBe(original)
    const thrown = Object.assign(new Error('late'), {
      code: 'ERR_RANK_TIMEOUT',
      rank: 3,
      op: 'layers.0.attention',
      step: 7,
    })
    const converted = toEngineError(thrown)
    expect(converted).toBeInstanceOf(EngineError)
    expect(converted).toMatchObject({
      code: 'ERR_RANK_TIMEOUT',
      rank: 3,
      op: 'layers.0.attention',
      step: 7,
      cause: thrown,
    })
  })

  it('anything else is ERR_INTERNAL', () => {
    for (const thrown of [new Error('x'), { code: 'ERR_MADE_UP' }, 'text', undefined, null]) {
      expect(toEngineError(thrown)).toMatchObject({ code: 'ERR_INTERNAL' })
    }
  })

  it('what the addon throws converts', () => {
    const { Runtime } = loadBinding()
    const create = () =>
      new Runtime({
        ranks: [{ device: 'abacus' }],
        tp: 1,
        heapBytes: 1 << 16,
        threadsPerRank: 1,
        waitTimeoutMs: 1000,
        deterministic: false,
        cpuIsa: 'auto',
      })
    let thrown: unknown
    try {
      create()
    } catch (error) {
      thrown = error
    }
    expect(toEngineError(thrown).code).toBe('ERR_NO_DEVICE')
  })
})
