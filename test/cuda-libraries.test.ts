/**
 * NCCL, cuBLASLt and multicast heaps in the CUDA backend, over emulated GPUs and doubles of the
 * libraries.
 */

import { fileURLToPath } from 'node:url'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import { loadModel } from '../lib/models/index.ts'
import type { NativeRuntime } from '../lib/native/binding.ts'
import type { ProgramOp } from '../lib/program/types.ts'
import { BareModel, type BareOptions } from './support/bare-model.ts'
import { buildEmulation, canBuildEmulation, useEmulation } from './support/emulation.ts'
import { goldenFolder, maxDifference, readGolden } from './support/golden.ts'
import {
  HIDDEN,
  openRuntime,
  rejection,
  stallOp,
  sumOp,
  sumOverRanks,
  tokensStep,
  twoBufferProgram,
} from './support/runtime-programs.ts'

const BUILD_TIMEOUT_MS = 1_800_000
const MAX_LOGIT_DIFFERENCE = 2e-4

const usable = canBuildEmulation()
if (!usable) console.log('skipped, there is no C++ compiler with CMake: test/cuda-libraries')

const built = (name: string) => fileURLToPath(new URL(`../build/${name}`, import.meta.url))

// Before the addon is loaded and looks for its libraries.
useEmulation()
process.env.NANOWEAVE_NCCL = built('libnanoweave_nccl_double.so')
process.env.NANOWEAVE_CUBLASLT = built('libnanoweave_cublaslt_double.so')
process.env.NCCL_MULTI_RANK_GPU_ENABLE = '1'
process.env.NANOWEAVE_EMULATION_DEVICES = '3'
process.env.NANOWEAVE_EMULATION_MEMORY = '512'

const opened: { close(): Promise<void> | void }[] = []
afterEach(async () => {
  for (const runtime of opened.splice(0)) await runtime.close()
  delete process.env.NANOWEAVE_EMULATION_PEERS
  delete process.env.NANOWEAVE_EMULATION_MULTICAST
})

function open(devices: readonly number[], overrides = {}): NativeRuntime {
  const ranks = devices.map((device) => ({ device: `cuda:${device}` }))
  const runtime = openRuntime(devices.length, { ranks, ...overrides })
  opened.push(runtime)
  return runtime
}

const load = (runtime: NativeRuntime, world: number, ops: readonly ProgramOp[]) =>
  runtime.loadProgram(JSON.stringify(twoBufferProgram(world, ops)))

const sumBy = (form: string): ProgramOp => ({ ...sumOp(), attrs: { form } })

async function expectSums(runtime: NativeRuntime, program: number, world: number): Promise<void> {
  for (const numTokens of [1, 7]) {
    const sums = await sumOverRanks(runtime, program, world, numTokens)
    const expected = new Float32Array(numTokens * HIDDEN).fill((world * (world + 1)) / 2)
    for (const sum of sums) expect(sum).toEqual(expected)
  }
}

describe.skipIf(!usable)('CUDA backend', () => {
  beforeAll(buildEmulation, BUILD_TIMEOUT_MS)

  const folder = goldenFolder('llama')
  const prompt = readGolden(folder)[0]!

  async function openGolden(
    devices: readonly string[],
    options: Partial<BareOptions> = {},
  ): Promise<BareModel> {
    const bare = await BareModel.load(loadModel(folder), {
      tp: devices.length,
      devices,
      parts: [1, 2],
      maxTokens: prompt.tokens.length + 1,
      ...options,
    })
    opened.push(bare)
    return bare
  }

  async function expectGolden(bare: BareModel, parts: number): Promise<void> {
    const logits = await bare.forward(prompt.tokens, 5, parts)
    expect(maxDifference(logits, prompt.logits)).toBeLessThanOrEqual(MAX_LOGIT_DIFFERENCE)
    const { greedy } = prompt
    const next = await bare.step([greedy[0]!.token], prompt.tokens.length, parts)
    expect(next.sampled).toBe(greedy[1]!.token)
  }

  it('GPUs that cannot map each other serve a model through NCCL', async () => {
    process.env.NANOWEAVE_EMULATION_PEERS = '0'
    const bare = await openGolden(['cuda:0', 'cuda:1'])
    for (const parts of [1, 2]) await expectGolden(bare, parts)
  })

  it('GPUs that cannot map each other cannot be deterministic', async () => {
    process.env.NANOWEAVE_EMULATION_PEERS = '0'
    const error = await rejection(load(open([0, 1], { deterministic: true }), 2, [sumOp()]))
    expect(error.code).toBe('ERR_UNSUPPORTED_LAYOUT')
    expect(error.message).toContain('it does not sum in rank order: not deterministic')
  })

  it('cuBLASLt multiplies where a program asks for it', async () => {
    const attrsOf = ({ kind }: ProgramOp): ProgramOp['attrs'] =>
      kind === 'matmul' ? { implementation: 'cublaslt' } : {}
    const captured = await openGolden(['cuda:0'], { attrsOf, parts: [1] })
    await expectGolden(captured, 1)
    const eager = await openGolden(['cuda:0'], { attrsOf, graphs: false })
    await expectGolden(eager, 2)
  })

  it('several ranks of a GPU have a stream each for NCCL', async () => {
    const runtime = open([0, 1, 1])
    await expectSums(runtime, await load(runtime, 3, [sumBy('nccl')]), 3)
  })

  it('a rank that does not come to a NCCL collective fails the step on all', async () => {
    const runtime = open([0, 1], { waitTimeoutMs: 400 })
    const program = await load(runtime, 2, [stallOp(1, 60_000), { ...sumBy('nccl'), waits: [] }])
    const started = performance.now()
    const error = await rejection(runtime.submit(program, tokensStep(3)))
    expect(error.code).toBe('ERR_RANK_TIMEOUT')
    expect(error.message).toContain('did not come to a collective')
    await runtime.close()
    expect(performance.now() - started).toBeLessThan(20_000)
    const another = open([0, 1])
    await expectSums(another, await load(another, 2, [sumBy('nccl')]), 2)
  })

  it('a step that waits for the one in front has its own time', async () => {
    const runtime = open([0, 1], { waitTimeoutMs: 1000 })
    const program = await load(runtime, 2, [stallOp(1, 600), { ...sumBy('nccl'), waits: [] }])
    // Both are on the device at once; the second ends 1.2 s after it was put there.
    await Promise.all([1, 2].map(() => runtime.submit(program, tokensStep(3))))
  })

  it('multicast heaps serve where the devices have them, else the reason is told', async () => {
    const refused = await rejection(load(open([0, 1, 2]), 3, [sumBy('multicast')]))
    expect(refused.code).toBe('ERR_PROGRAM')
    expect(refused.message).toContain('the emulated devices have no multicast')
    process.env.NANOWEAVE_EMULATION_MULTICAST = '1'
    const runtime = open([0, 1, 2])
    await expectSums(runtime, await load(runtime, 3, [sumBy('multicast')]), 3)
  })
})
