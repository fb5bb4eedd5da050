/**
 * The CUDA backend and its kernels on an emulated GPU: goldens over virtual ranks, nano-batches and
 * graphs, two devices, faults, closing, memory. A few cells of the matrix; `npm run test:emulated`
 * runs a subset that has every pair of its values (NANOWEAVE_EMULATED_MATRIX=pairs).
 */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Engine as EngineClass } from '../lib/engine/engine.ts'
import { RESULT_SECTION, ROW_FLAG, STEP_SECTION } from '../lib/engine/step.ts'
import { checkLayout, compileModel, loadModel } from '../lib/models/index.ts'
import type { NativeRuntime } from '../lib/native/binding.ts'
import { formatTrace } from '../lib/parallel/balance/trace.ts'
import type { BareModel } from './support/bare-model.ts'
import { buildEmulation, canBuildEmulation, useEmulation } from './support/emulation.ts'
import {
  DENSE_FAMILIES,
  EXPERT_FAMILIES,
  goldenFolder,
  maxDifference,
  readGolden,
} from './support/golden.ts'
import { coverPairs } from './support/pairwise.ts'

const ALL_PAIRS = process.env.NANOWEAVE_EMULATED_MATRIX === 'pairs'
const BUILD_TIMEOUT_MS = 900_000
const TEST_TIMEOUT_MS = 300_000
const MAX_LOGIT_DIFFERENCE = 2e-4
const MIN_MARGIN = 1e-3

const usable = canBuildEmulation()
if (!usable) console.log('skipped, there is no C++ compiler with CMake: test/cuda-emulation')

let programs: typeof import('./support/runtime-programs.ts')
let bareModel: typeof import('./support/bare-model.ts')
let native: typeof import('./support/native.ts')
let binding: typeof import('../lib/native/load.ts')
let Engine: typeof EngineClass

async function loadEmulated(): Promise<void> {
  useEmulation()
  programs = await import('./support/runtime-programs.ts')
  bareModel = await import('./support/bare-model.ts')
  native = await import('./support/native.ts')
  binding = await import('../lib/native/load.ts')
  Engine = (await import('../lib/engine/engine.ts')).Engine
}

/** Ranks 0..world−1 on the given devices in turn. */
function open(devices: string[], world: number, overrides = {}): NativeRuntime {
  return programs.openRuntime(world, {
    ranks: Array.from({ length: world }, (_, rank) => ({
      device: devices[rank % devices.length]!,
    })),
    ...overrides,
  })
}

type Case = Readonly<{
  family: string
  tp: number
  /** Ranks that share the experts. */
  ep: number
  parts: number
  graphs: boolean
  numDevices: number
}>

/**
 * What CI has time for: every degree, both part counts, graphs on and off, several families; experts
 * over groups, inside of one, in slices.
 */
const FEW: readonly Case[] = [
  { family: 'llama', tp: 1, ep: 1, parts: 1, graphs: true, numDevices: 1 },
  { family: 'llama', tp: 2, ep: 1, parts: 2, graphs: true, numDevices: 2 },
  { family: 'llama', tp: 4, ep: 1, parts: 1, graphs: false, numDevices: 1 },
  { family: 'gemma2-softcap', tp: 2, ep: 1, parts: 1, graphs: true, numDevices: 1 },
  { family: 'qwen3-qknorm', tp: 4, ep: 1, parts: 2, graphs: true, numDevices: 1 },
  { family: 'mixtral', tp: 1, ep: 4, parts: 2, graphs: true, numDevices: 2 },
  { family: 'qwen2-moe-shared', tp: 2, ep: 4, parts: 1, graphs: true, numDevices: 1 },
  { family: 'qwen3-moe', tp: 2, ep: 2, parts: 1, graphs: false, numDevices: 1 },
  { family: 'olmoe', tp: 1, ep: 2, parts: 2, graphs: true, numDevices: 1 },
  { family: 'olmoe', tp: 2, ep: 2, parts: 2, graphs: true, numDevices: 2 },
  { family: 'glm4-moe', tp: 4, ep: 2, parts: 1, graphs: true, numDevices: 1 },
  { family: 'gpt-oss-sinks', tp: 2, ep: 4, parts: 2, graphs: false, numDevices: 2 },
  { family: 'deepseek-v2-mla', tp: 2, ep: 2, parts: 2, graphs: true, numDevices: 2 },
  { family: 'deepseek-v3-mla', tp: 1, ep: 1, parts: 1, graphs: true, numDevices: 1 },
]

function fits(family: string, tp: number, ep: number): boolean {
  try {
    checkLayout(loadModel(goldenFolder(family)), tp, ep)
    return true
  } catch {
    return false
  }
}

function allCases(): Case[] {
  const cases: Case[] = []
  const degrees = [1, 2, 4]
  const add = (family: string, tp: number, ep: number) => {
    if (!fits(family, tp, ep)) return
    for (const parts of [1, 2, 4])
      for (const graphs of [true, false])
        for (const numDevices of Math.max(tp, ep) === 1 ? [1] : [1, 2])
          cases.push({ family, tp, ep, parts, graphs, numDevices })
  }
  for (const family of DENSE_FAMILIES) for (const tp of degrees) add(family, tp, 1)
  for (const family of EXPERT_FAMILIES)
    for (const tp of degrees) for (const ep of degrees) add(family, tp, ep)
  return cases
}

describe.skipIf(!usable)('emulated CUDA', () => {
  beforeAll(async () => {
    buildEmulation()
    await loadEmulated()
  }, BUILD_TIMEOUT_MS)

  it('sequences of two attention groups get what they get on the CPU', async () => {
    const prompts = [5, 9, 14, 3, 20].map((length, k) =>
      Array.from({ length }, (_, i) => 3 + ((37 * i + 11 * k) % 400)),
    )
    const run = async (layout: { device: 'cpu' | 'cuda'; expertParallel: number }) => {
      const sizes = { maxNumBatchedTokens: 32, maxNumSeqs: 4, maxModelLen: 64 }
      const options = { ...sizes, ...layout, precision: 'f32' as const }
      const engine = await Engine.load('models/tiny-moe', options)
      try {
        const outputs = await Promise.all(
          prompts.map((tokens) =>
            engine.complete({ tokens, maxTokens: 4, temperature: 0, ignoreEos: true }),
          ),
        )
        const cached = engine.stats().groups.map(({ kvBlocks }) => kvBlocks.cached > 0)
        return { tokens: outputs.map(({ tokens }) => tokens), cached }
      } finally {
        await engine.close()
      }
    }
    const onGpu = await run({ device: 'cuda', expertParallel: 2 })
    expect(onGpu.cached).toEqual([true, true])
    expect(onGpu.tokens).toEqual((await run({ device: 'cpu', expertParallel: 1 })).tokens)
  })

  it('describes its devices', () => {
    const { devices, missing, build } = binding.loadBinding().describeDevices()
    const gpus = devices.filter(({ backend }) => backend === 'cuda')
    expect(gpus.map(({ name }) => name)).toEqual(['cuda:0', 'cuda:1'])
    expect(gpus[0]!.peers).toEqual(['cuda:1'])
    expect(gpus[0]!.freeMemoryBytes).toBeGreaterThan(0)
    expect(missing).toEqual({})
    expect(build.cuda).toBe('emulated')
  })

  describe.each(ALL_PAIRS ? coverPairs(allCases()) : FEW)(
    '$family, tp $tp, ep $ep on $numDevices, $parts parts, graphs $graphs',
    ({ family, tp, ep, parts, graphs, numDevices }) => {
      const prompts = readGolden(goldenFolder(family)).slice(0, 1)
      const longest = Math.max(
        ...prompts.map(({ tokens, greedy }) => tokens.length + greedy.length),
      )
      const steps = ALL_PAIRS ? 8 : 4
      let bare: BareModel
      beforeAll(async () => {
        const model = loadModel(goldenFolder(family))
        bare = await bareModel.BareModel.load(model, {
          tp,
          ep,
          devices: Array.from(
            { length: Math.max(tp, ep) },
            (_, rank) => `cuda:${rank % numDevices}`,
          ),
          parts: [parts],
          maxTokens: longest,
          graphs,
        })
        // The last group: the others take part with no tokens.
        bare.group = Math.max(tp, ep) / tp - 1
      }, TEST_TIMEOUT_MS)
      afterAll(() => bare?.close())

      it(
        'gives the reference logits and its greedy continuation',
        async () => {
          for (const { tokens, greedy, logits } of prompts) {
            const prompt = await bare.step(tokens, 0, parts)
            expect(maxDifference(prompt.logits, logits)).toBeLessThanOrEqual(MAX_LOGIT_DIFFERENCE)
            let next = prompt.sampled
            let position = tokens.length
            for (const { token, margin } of greedy.slice(0, steps)) {
              if (margin > MIN_MARGIN) expect(next).toBe(token)
              next = (await bare.step([token], position++, parts)).sampled
            }
          }
        },
        TEST_TIMEOUT_MS,
      )
    },
  )

  it.each([
    ['tensor cores', 8, 'bf16'],
    ['multiply-adds', 6, 'f32'],
  ] as const)(
    'a row of latent attention has the same bits however it is computed, by %s',
    async (_, ropeDim, dtype) => {
      const { FEW_RUNS, ofLatents, rowInManyWays } = await import('./ops/attention-row.ts')
      const { expectAgree } = await import('./ops/tolerance.ts')
      const sizes = { heads: 3, latentDim: 8, ropeDim, dtype, kvDtype: dtype }
      const outputs = await rowInManyWays(ofLatents(sizes), 'auto', FEW_RUNS)
      expectAgree(outputs)
      expect(outputs[0]!.some((byte) => byte !== 0 && byte !== 0xff)).toBe(true)
    },
    TEST_TIMEOUT_MS,
  )

  describe('ranks', () => {
    it.each([
      ['one device', ['cuda:0'], 3],
      ['two devices', ['cuda:0', 'cuda:1'], 4],
    ])(
      'sum over %s',
      async (_, devices, world) => {
        const runtime = open(devices, world)
        const program = await runtime.loadProgram(
          JSON.stringify(programs.twoBufferProgram(world, [programs.sumOp()])),
        )
        // 3 tokens run by graph, 16 do not.
        for (const numTokens of [1, 3, 16])
          for (const y of await programs.sumOverRanks(runtime, program, world, numTokens))
            expect(y).toEqual(
              new Float32Array(numTokens * programs.HIDDEN).fill((world * (world + 1)) / 2),
            )
        await runtime.close()
      },
      TEST_TIMEOUT_MS,
    )

    it(
      'a late rank is waited for',
      async () => {
        const runtime = open(['cuda:0'], 3)
        const ops = [programs.stallOp(1, 60), programs.sumOp()]
        const program = await runtime.loadProgram(JSON.stringify(programs.twoBufferProgram(3, ops)))
        const [y] = await programs.sumOverRanks(runtime, program, 3, 2)
        expect(y).toEqual(new Float32Array(2 * programs.HIDDEN).fill(6))
        await runtime.close()
      },
      TEST_TIMEOUT_MS,
    )

    it.each([
      ['one device', ['cuda:0']],
      ['two devices', ['cuda:0', 'cuda:1']],
    ])(
      'a dead rank on %s is named, and a fresh runtime works',
      async (_, devices) => {
        const runtime = open(devices, 3, { waitTimeoutMs: 300 })
        const load = (ops: Parameters<typeof programs.twoBufferProgram>[1]) =>
          runtime.loadProgram(JSON.stringify(programs.twoBufferProgram(3, ops)))
        const dead = await load([programs.stallOp(2, -1), programs.sumOp()])
        const healthy = await load([programs.sumOp()])
        const first = runtime.submit(dead, programs.tokensStep(2))
        const queued = runtime.submit(healthy, programs.tokensStep(2))
        for (const promise of [first, queued]) {
          const { code, rank, op } = await programs.rejection(promise)
          expect({ code, rank, op }).toEqual({ code: 'ERR_RANK_TIMEOUT', rank: 2, op: 'sum' })
        }
        const refused = await programs.rejection(runtime.submit(healthy, programs.tokensStep(2)))
        expect(refused.rank).toBe(2)
        await runtime.close()

        const fresh = open(devices, 3)
        const program = await fresh.loadProgram(
          JSON.stringify(programs.twoBufferProgram(3, [programs.sumOp()])),
        )
        const [y] = await programs.sumOverRanks(fresh, program, 3, 1)
        expect(y).toEqual(new Float32Array(programs.HIDDEN).fill(6))
        await fresh.close()
      },
      TEST_TIMEOUT_MS,
    )

    it(
      'closing ends a step that outlasts the wait timeout',
      async () => {
        const runtime = open(['cuda:0'], 1, { waitTimeoutMs: 50 })
        const program = await runtime.loadProgram(
          JSON.stringify(programs.twoBufferProgram(1, [programs.stallOp(0, 30_000)])),
        )
        const step = programs.rejection(runtime.submit(program, programs.tokensStep(1)))
        await runtime.close()
        expect((await step).code).toBe('ERR_CLOSED')
      },
      TEST_TIMEOUT_MS,
    )

    it(
      'slot lists that do not fit beside a step go ahead of it, on all devices',
      async () => {
        const compiled = compileModel(loadModel(goldenFolder('llama')), {
          tensorParallel: 2,
          parts: 1,
          precision: 'f32',
          limits: {
            maxTokens: 8,
            maxRows: 2,
            maxSeqs: 1,
            numBlocks: 2,
            blockSize: 16,
            maxBlocksPerSeq: 2,
            numSlots: 2,
          },
        })
        const positions = (from: number, count: number) =>
          Array.from({ length: count }, (_, index) => from + index)
        const step = (tokens: number[], from: number, slots: readonly [number, number[]][]) =>
          native.encodeStep(
            new Map<number, readonly number[]>([
              [STEP_SECTION.partBounds, [0, tokens.length]],
              [STEP_SECTION.tokens, tokens],
              [STEP_SECTION.positions, positions(from, tokens.length)],
              [STEP_SECTION.kvSlots, positions(from, tokens.length)],
              [STEP_SECTION.seqStarts, [0, tokens.length]],
              [STEP_SECTION.seqLens, [from + tokens.length]],
              [STEP_SECTION.blockTables, [0, 1]],
              [STEP_SECTION.rows, [tokens.length - 1, 1, -1, ROW_FLAG.sample]],
              ...slots,
            ]),
          )
        const { wordsOf } = native
        const params = [1, 0, 0, 0, 0, ...wordsOf(1, 0, 1.5, 0, 0), 0, 0]
        // 7 gets 120 in all and 9 gets 114: what is lost on the way shows.
        const bias = (token: number, amount: number) =>
          Array.from({ length: 12_000 }, () => [token, ...wordsOf(amount)]).flat()
        const lists: [number, number[]][] = [
          [STEP_SECTION.slotParams, params],
          [STEP_SECTION.slotHistory, [1, 20_000, ...Array<number>(20_000).fill(11)]],
          [STEP_SECTION.slotBias, [1, 24_000, ...bias(7, 0.01), ...bias(9, 0.0095)]],
        ]
        const run = async (devices: string[]) => {
          const runtime = open(devices, 2, { heapBytes: compiled.program.arenaBytes })
          await runtime.loadWeights(JSON.stringify(compiled.manifest))
          const program = await runtime.loadProgram(JSON.stringify(compiled.program))
          // All at once: the lists meet a device that still works on the first step.
          const steps = [
            step([3, 5, 6], 0, [[STEP_SECTION.slotParams, params]]),
            step([-2], 3, lists),
            step([-2], 4, []),
          ].map((words) => runtime.submit(program, words))
          const sampled = (await Promise.all(steps)).map((words) => {
            const entry = [5, 9, 13, 17].find((at) => words[at] === RESULT_SECTION.sampled)!
            return words[words[entry + 2]!]
          })
          await runtime.close()
          return sampled
        }
        const expected = await run(['cpu'])
        expect(expected[1]).toBe(7)
        expect(await run(['cuda:0', 'cuda:1'])).toEqual(expected)
      },
      TEST_TIMEOUT_MS,
    )

    it.each([
      ['a step runs', 'load([late]).then((id) => { for (const i of [1, 2, 3]) submit(id) })'],
      ['programs load', 'for (const i of Array(200)) load([sum])'],
    ])(
      'process.exit() while %s comes before the driver goes',
      (_, start) => {
        const options = programs.runtimeOptions(2, {
          ranks: [{ device: 'cuda:0' }, { device: 'cuda:1' }],
        })
        const text = `
          const { Runtime } = require(${JSON.stringify(process.env.NANOWEAVE_BINARY)})
          const runtime = new Runtime(${JSON.stringify(options)})
          const program = ${JSON.stringify(programs.twoBufferProgram(2, []))}
          const sum = ${JSON.stringify(programs.sumOp())}
          const late = ${JSON.stringify(programs.stallOp(0, 30_000))}
          const words = Int32Array.from(${JSON.stringify([...programs.tokensStep(4)])})
          const load = (ops) => runtime.loadProgram(JSON.stringify({ ...program, ops }))
          const submit = (id) => runtime.submit(id, words)
          ${start}
          setTimeout(() => process.exit(7), 100)`
        const { status, signal, stderr } = spawnSync(process.execPath, ['-e', text], {
          encoding: 'utf8',
          timeout: 60_000,
        })
        expect({ status, signal, stderr }).toEqual({ status: 7, signal: null, stderr: '' })
      },
      TEST_TIMEOUT_MS,
    )

    it('a device that is not there: ERR_NO_DEVICE', () => {
      expect(() => open(['cuda:7'], 1)).toThrow(expect.objectContaining({ code: 'ERR_NO_DEVICE' }))
    })
  })

  describe('experts on the move', () => {
    const sizes = { maxNumBatchedTokens: 32, maxNumSeqs: 4, maxModelLen: 64, precision: 'f32' }
    const prompts = [5, 9, 14, 3].map((length, k) =>
      Array.from({ length }, (_, i) => 3 + ((37 * i + 11 * k) % 400)),
    )
    const maxTokens = 6
    type Options = NonNullable<Parameters<typeof EngineClass.load>[1]>

    /** The tokens of all prompts, what was counted, and a trace of the first one, if counted. */
    async function run(layout: Options) {
      const engine = await Engine.load('models/tiny-moe', { ...sizes, ...layout } as Options)
      try {
        const outputs = await Promise.all(
          prompts.map((tokens) =>
            engine.complete({ tokens, maxTokens, temperature: 0, ignoreEos: true }),
          ),
        )
        const { experts } = engine.stats()
        let trace: ReturnType<typeof engine.stopExpertTrace> | undefined
        if (layout.expertBalance === 'count') {
          engine.startExpertTrace()
          await engine.forward(prompts[2]!)
          trace = engine.stopExpertTrace()
        }
        return { tokens: outputs.map(({ tokens }) => tokens), experts, trace }
      } finally {
        await engine.close()
      }
    }

    let atRest: Awaited<ReturnType<typeof run>>
    beforeAll(async () => {
      atRest = await run({ device: 'cpu' })
    }, TEST_TIMEOUT_MS)

    it.each([
      ['eplb, 2 ranks on two devices', 2, 1, ['cuda:0', 'cuda:1']],
      ['eplb, 4 ranks on two devices', 4, 1, ['cuda:0', 'cuda:1']],
      ['eplb, slices over two devices', 2, 4, ['cuda:0', 'cuda:1']],
    ] as const)(
      '%s: the tokens of the CPU',
      async (_, expertParallel, tensorParallel, devices) => {
        const moved = await run({
          ...{ expertParallel, tensorParallel, devices },
          ...{ expertSlots: 1, expertBalance: 'eplb' as const, expertBalancePeriod: 1 },
        })
        expect(moved.tokens).toEqual(atRest.tokens)
        expect(moved.experts?.movedSlots).toBeGreaterThan(0)
      },
      TEST_TIMEOUT_MS,
    )

    it(
      'placed by a trace: counts, choices and tokens of the CPU',
      async () => {
        const counting = {
          ...{ expertParallel: 4, expertBalance: 'count' as const, expertBalancePeriod: 1 },
          ...{ prefixCache: false, pipelineDepth: 1 as const },
        }
        const onCpu = await run({ ...counting, device: 'cpu' })
        const onGpu = await run({ ...counting, devices: ['cuda:0', 'cuda:1'] })
        expect(onGpu.tokens).toEqual(atRest.tokens)
        expect(onGpu.trace).toEqual(onCpu.trace)
        const computed = prompts.reduce((sum, { length }) => sum + length + maxTokens - 1, 0)
        for (const loads of onGpu.experts!.experts)
          expect(loads.reduce((sum, load) => sum + load, 0)).toBe(2 * computed)

        const folder = mkdtempSync(path.join(os.tmpdir(), 'nanoweave-trace-'))
        try {
          const expertPlacement = path.join(folder, 'trace.json')
          writeFileSync(expertPlacement, formatTrace(onGpu.trace!))
          const placed = await run({ expertParallel: 4, devices: ['cuda:0'], expertPlacement })
          expect(placed.tokens).toEqual(atRest.tokens)
        } finally {
          rmSync(folder, { recursive: true })
        }
      },
      TEST_TIMEOUT_MS,
    )
  })

  describe('engine', () => {
    const options = {
      devices: ['cuda:0'],
      precision: 'f32',
      maxModelLen: 64,
      maxNumSeqs: 4,
      maxNumBatchedTokens: 32,
      kvCacheBytes: 4 << 20,
    } as const

    it(
      'samples, shares prefixes and copies blocks as the CPU does',
      async () => {
        const sampled = [
          { tokens: [1, 5, 9, 11], temperature: 0.8, topP: 0.9, seed: 7 },
          {
            tokens: [2, 6, 4],
            temperature: 1,
            topK: 5,
            repetitionPenalty: 1.3,
            logitBias: { 8: 2 },
            seed: 3,
          },
        ]
        // One block and a half: a later prompt finds the block, forks copy the half.
        const long = Array.from({ length: 24 }, (_, index) => 1 + ((7 * index) % 40))
        const run = async (devices: readonly string[], tensorParallel: number) => {
          await using engine = await Engine.load(goldenFolder('llama'), {
            ...options,
            devices,
            tensorParallel,
          })
          const common = { maxTokens: 4, ignoreEos: true }
          const results = await Promise.all(
            sampled.map((request) => engine.complete({ ...request, ...common })),
          )
          const tokens = results.map((result) => result.tokens)
          const forked = await engine.completeMany({
            ...common,
            tokens: long,
            temperature: 1,
            seed: 5,
            n: 2,
          })
          tokens.push(...forked.choices.map((choice) => choice.tokens))
          const again = await engine.complete({ ...common, tokens: [...long, 3], temperature: 0 })
          tokens.push(again.tokens)
          return { tokens, prefixHits: engine.stats().prefixHits }
        }
        const onCpu = await run(['cpu'], 1)
        expect(onCpu.prefixHits).toBeGreaterThan(0)
        expect(await run(['cuda:0'], 2)).toEqual(onCpu)
      },
      TEST_TIMEOUT_MS,
    )

    it(
      'copies, shares and swaps blocks of latent vectors as the CPU does',
      async () => {
        // Three layers of 24 floats a token; five blocks serve four sequences of two to three.
        const blockBytes = 3 * 24 * 4 * 16
        const run = async (devices: readonly string[]) => {
          await using engine = await Engine.load(goldenFolder('deepseek-v3-mla'), {
            ...options,
            devices,
            kvCacheBytes: 5 * blockBytes,
            hostKvBytes: 16 * blockBytes,
            admission: 'prompt-fits',
            preemption: 'swap',
          })
          const { choices } = await engine.completeMany({
            tokens: Array.from({ length: 24 }, (_, i) => 1 + ((7 * i) % 40)),
            maxTokens: 20,
            ignoreEos: true,
            temperature: 1,
            seed: 5,
            n: 4,
          })
          const { swapsIn, kvBlocks } = engine.stats()
          return { tokens: choices.map(({ tokens }) => tokens), swapsIn, total: kvBlocks.total }
        }
        const onCpu = await run(['cpu'])
        expect(onCpu.total).toBe(5)
        expect(onCpu.swapsIn).toBeGreaterThan(0)
        expect((await run(['cuda:0'])).tokens).toEqual(onCpu.tokens)
      },
      TEST_TIMEOUT_MS,
    )

    it(
      'says what is needed and what would fit when memory does not suffice',
      async () => {
        await expect(
          Engine.load(goldenFolder('llama'), { ...options, kvCacheBytes: 2 ** 30 }),
        ).rejects.toThrow(
          expect.objectContaining({
            code: 'ERR_OUT_OF_MEMORY',
            message: expect.stringMatching(/needs \d+.*(would fit|smaller)/s),
          }),
        )
      },
      TEST_TIMEOUT_MS,
    )
  })
})
