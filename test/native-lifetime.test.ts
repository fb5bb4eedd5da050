/**
 * Lifetimes of the addon: many runtimes, worker threads that load, run and are terminated, processes
 * that exit with work in flight. Worker and child code is CommonJS text that requires the binary.
 */

import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import { resolveBinary } from '../lib/native/load.ts'
import {
  openRuntime,
  rejection,
  runtimeOptions,
  stallOp,
  sumOp,
  tokensStep,
  twoBufferProgram,
} from './support/runtime-programs.ts'

/** Text that defines `runtime` and async `load(ops)`, and the steps to feed it. */
function preamble(world: number, waitTimeoutMs = 20_000): string {
  return `
    const { Runtime } = require(${JSON.stringify(resolveBinary())})
    const runtime = new Runtime(${JSON.stringify(runtimeOptions(world, { waitTimeoutMs }))})
    const program = ${JSON.stringify(twoBufferProgram(world, []))}
    const load = (ops) => runtime.loadProgram(JSON.stringify({ ...program, ops }))
    const step = Int32Array.from(${JSON.stringify([...tokensStep(4)])})
    const sum = ${JSON.stringify(sumOp())}
    const late = ${JSON.stringify(stallOp(0, 30_000))}
    const dead = ${JSON.stringify(stallOp(0, -1))}`
}

/** Runs CommonJS text in a process of its own. */
function runProcess(text: string) {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['-e', text], {
    encoding: 'utf8',
    timeout: 50_000,
  })
  return { status, signal, stdout, stderr }
}

function numThreads(): number {
  return readdirSync('/proc/self/task').length
}

function residentBytes(): number {
  return Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096
}

describe('many runtimes', () => {
  test('1,000 created, used and closed: no thread and no memory is left behind', async () => {
    const text = JSON.stringify(twoBufferProgram(2, [sumOp()]))
    const cycle = async () => {
      const runtime = openRuntime(2)
      const program = await runtime.loadProgram(text)
      await runtime.submit(program, tokensStep(4))
      await runtime.close()
    }
    for (let i = 0; i < 200; i++) await cycle()
    const threads = numThreads()
    const bytes = residentBytes()
    for (let i = 0; i < 800; i++) await cycle()
    expect(numThreads()).toBeLessThanOrEqual(threads)
    // JavaScript's own heap moves by some MB; a leak of one heap page per rank would be 6 MB more.
    expect(residentBytes() - bytes).toBeLessThan(48 << 20)
  })

  test('a runtime that is dropped without close() lets the process end', () => {
    const { status, stderr } = runProcess(`${preamble(2)}
      load([sum]).then((id) => runtime.submit(id, step))`)
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  })

  test('a pending step keeps the process alive until it settles', () => {
    const { status, stdout } = runProcess(`${preamble(2)}
      load([{ ...late, attrs: { rank: 0, ms: 100 } }, sum])
        .then((id) => runtime.submit(id, step))
        .then(() => console.log('settled'))`)
    expect({ status, stdout }).toEqual({ status: 0, stdout: 'settled\n' })
  })
})

describe('ends of processes', () => {
  test.each([
    ['sleeping rank', 1, '[late]'],
    ['dead rank', 2, '[dead, sum]'],
    ['queue of steps', 2, '[sum]'],
  ])('process.exit() with a %s', (_, world, ops) => {
    const { status, signal, stderr } = runProcess(`${preamble(world)}
      load(${ops}).then((id) => {
        for (let i = 0; i < 50; i++) runtime.submit(id, step)
        setTimeout(() => process.exit(7), 30)
      })`)
    expect({ status, signal, stderr }).toEqual({ status: 7, signal: null, stderr: '' })
  })

  test('process.exit() while a program loads', () => {
    const { status, signal } = runProcess(`${preamble(2)}
      for (let i = 0; i < 200; i++) load([sum])
      setImmediate(() => process.exit(7))`)
    expect({ status, signal }).toEqual({ status: 7, signal: null })
  })

  test('an exception of JavaScript with a step in flight', () => {
    const { status, signal } = runProcess(`${preamble(1)}
      load([late]).then((id) => {
        runtime.submit(id, step)
        throw new Error('from JavaScript')
      })`)
    expect({ status, signal }).toEqual({ status: 1, signal: null })
  })
})

describe('worker threads', () => {
  const spawnWorker = (text: string) => new Worker(text, { eval: true })
  const ended = (worker: Worker) =>
    new Promise<number>((resolve, reject) => {
      worker.on('exit', resolve)
      worker.on('error', reject)
    })

  test('eight at once, each with a runtime of its own', async () => {
    const workers = Array.from({ length: 8 }, () =>
      spawnWorker(`${preamble(2)}
        load([sum]).then(async (id) => {
          for (let i = 0; i < 20; i++) await runtime.submit(id, step)
          await runtime.close()
        })`),
    )
    expect(await Promise.all(workers.map(ended))).toEqual(Array(8).fill(0))
  })

  test('terminated with a step in flight, again and again; the main thread still works', async () => {
    const threads = numThreads()
    for (const ops of ['[late]', '[dead, sum]', '[sum]', '[late]', '[dead, sum]', '[sum]']) {
      const worker = spawnWorker(`${preamble(2)}
        load(${ops}).then((id) => {
          for (let i = 0; i < 20; i++) runtime.submit(id, step)
          require('node:worker_threads').parentPort.postMessage('running')
        })`)
      await new Promise((resolve) => worker.once('message', resolve))
      await worker.terminate()
    }
    const runtime = openRuntime(2)
    const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(2, [sumOp()])))
    expect((await runtime.submit(program, tokensStep(1)))[1]).toBe(1)
    await runtime.close()
    expect(numThreads()).toBeLessThanOrEqual(threads + 1) // the runner's own threads come and go
  })

  test('process.exit() inside a worker with a step in flight', async () => {
    const worker = spawnWorker(`${preamble(1)}
      load([late]).then((id) => {
        runtime.submit(id, step)
        setTimeout(() => process.exit(5), 20)
      })`)
    expect(await ended(worker)).toBe(5)
  })
})

test('a rejected step does not hold the event loop', async () => {
  const runtime = openRuntime(1)
  const program = await runtime.loadProgram(JSON.stringify(twoBufferProgram(1, [sumOp()])))
  expect((await rejection(runtime.submit(program, new Int32Array(3)))).code).toBe('ERR_STEP')
  await runtime.close()
})
