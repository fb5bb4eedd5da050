/**
 * The whole engine on a random Llama-shaped bf16 model, against node-llama-cpp on the same weights
 * with the same number of threads. Both run in processes of their own through their public
 * interfaces on token ids: greedy, no prefix reuse, the same step size. First the two are shown to
 * compute the same model (logits of one prompt); then they take turns, and prefill (until every
 * sequence has its first token) and decode (per token while all sequences decode) are timed apart.
 */

import path from 'node:path'
import { EngineError } from '../../errors.ts'
import {
  countParameters,
  ensureCheckpoint,
  findShape,
  type LlamaShape,
  layerMacsPerToken,
  makeRandom,
  weightBytesPerToken,
} from '../checkpoint.ts'
import { compareLogits, type LogitsComparison } from '../compare-logits.ts'
import { DisturbanceMeter } from '../disturbance.ts'
import { ensureGguf } from '../gguf.ts'
import { backendOf, isVirtual, placeBench } from '../placement.ts'
import { CHECKED_POSITIONS, checkTokens, readCheckLogits } from '../reference.ts'
import { findPeer, installPeerCommand } from '../sides/peer.ts'
import { SideProcess } from '../sides/process.ts'
import type { LoadRequest, MemoryReply } from '../sides/protocol.ts'
import { alternate, summarize } from '../stats.ts'
import type { BenchContext, BenchRow, BenchSuite, Measured, SuiteResult } from '../suite.ts'
import { decodeMsPerToken, prefillMs } from '../timeline.ts'

const SEED = 1
/** A GPU needs larger steps to be busy. */
const STEP_TOKENS = { cpu: 512, cuda: 8192 } as const
const DEFAULT_MODEL = { cpu: '0.5b', cuda: '8b' } as const
const KV_BLOCK_TOKENS = 16
/** Issue bound: peak RSS ≤ weights + KV + this. */
const MEMORY_ALLOWANCE_BYTES = 200 * 2 ** 20

interface Case {
  readonly sequences: number
  readonly promptTokens: number
  readonly newTokens: number
}

function parseCase(size: readonly number[]): Case {
  const [sequences, promptTokens, newTokens] = size
  return { sequences: sequences!, promptTokens: promptTokens!, newTokens: newTokens! }
}

function randomTokens(count: number, vocab: number, seed: number): number[] {
  const random = makeRandom(seed)
  return Array.from({ length: count }, () => random() % vocab)
}

/** Keys and values of one token over all layers, two bytes an element. */
function kvBytesPerToken(shape: LlamaShape): number {
  return shape.layers * 2 * shape.kvHeads * shape.headDim * 2
}

/** Each query against the keys up to its own: 2 · 2 · heads · headDim operations a pair. */
function attentionFlops(shape: LlamaShape, pairs: number): number {
  return 4 * shape.heads * shape.headDim * shape.layers * pairs
}

/** Prefill of all prompts; logits of the last row of each only. Weights must be read once. */
function prefillWork(shape: LlamaShape, { sequences, promptTokens }: Case) {
  const pairs = (sequences * promptTokens * (promptTokens + 1)) / 2
  return {
    bytes: weightBytesPerToken(shape),
    flops:
      2 * sequences * (promptTokens * layerMacsPerToken(shape) + shape.vocab * shape.hidden) +
      attentionFlops(shape, pairs),
  }
}

/** One decode step of all sequences in the middle of the output. */
function decodeWork(shape: LlamaShape, { sequences, promptTokens, newTokens }: Case) {
  const context = promptTokens + newTokens / 2
  return {
    bytes: weightBytesPerToken(shape) + sequences * context * kvBytesPerToken(shape),
    flops:
      2 * sequences * (layerMacsPerToken(shape) + shape.vocab * shape.hidden) +
      attentionFlops(shape, sequences * context),
  }
}

interface RoundSample {
  readonly prefillUs: number
  readonly decodeUs: number
  readonly tokens: readonly (readonly number[])[]
}

/** The prompts of a case once for their first tokens, and once more for whole outputs. */
async function measureRound(
  side: SideProcess,
  meter: DisturbanceMeter,
  one: Case,
  vocab: number,
): Promise<RoundSample> {
  const prompts = Array.from({ length: one.sequences }, (_, sequence) =>
    randomTokens(one.promptTokens, vocab, 100 + sequence),
  )
  const run = (newTokens: number) =>
    meter.watch(() => side.ask({ kind: 'run', prompts, newTokens }))
  const first = await run(1)
  const { tokens, timesMs } = await run(one.newTokens)
  for (const { length } of tokens) {
    if (length !== one.newTokens) {
      throw new EngineError('ERR_INTERNAL', `${side.name}: ${length} of ${one.newTokens} tokens`)
    }
  }
  return {
    prefillUs: prefillMs(first.timesMs) * 1000,
    decodeUs: decodeMsPerToken(timesMs) * 1000,
    tokens,
  }
}

/** Rounds in which a lone greedy sequence came out different from the first round. */
function countUnsteady(samples: readonly RoundSample[]): number {
  const texts = samples.map((sample) => JSON.stringify(sample.tokens))
  return texts.filter((text) => text !== texts[0]).length
}

interface Sides {
  readonly ours: SideProcess
  readonly theirs: SideProcess | undefined
}

async function measureCase(
  context: BenchContext,
  shape: LlamaShape,
  sides: Sides,
  meter: DisturbanceMeter,
  one: Case,
  verified: LogitsComparison | undefined,
): Promise<BenchRow[]> {
  const both = sides.theirs === undefined ? [sides.ours] : [sides.ours, sides.theirs]
  // One run that is not counted: caches, page tables, clocks.
  const warmUp = Array.from({ length: one.sequences }, (_, i) =>
    randomTokens(one.promptTokens, shape.vocab, 50 + i),
  )
  for (const side of both) await side.ask({ kind: 'run', prompts: warmUp, newTokens: 2 })
  const samples = await alternate(
    context.rounds,
    both.map((side) => () => measureRound(side, meter, one, shape.vocab)),
  )
  const measured = (index: number, pick: (sample: RoundSample) => number): Measured => ({
    name: both[index]!.name,
    ...summarize(samples[index]!.map(pick)),
  })
  const onGpu = backendOf(context.device) === 'cuda'
  const placement = {
    ...(onGpu && { parameters: weightBytesPerToken(shape) / 2 }),
    ...(onGpu &&
      isVirtual(placeBench(context.device, context.ranks)) && { virtualRanks: true as const }),
  }
  const unsteady = one.sequences === 1 ? countUnsteady(samples[0]!) : 0
  const row = (
    op: string,
    work: { bytes: number; flops: number },
    tokens: number,
    pick: (sample: RoundSample) => number,
  ): BenchRow => ({
    op,
    shape: `${one.sequences}×${one.promptTokens}${op === 'decode' ? `+${one.newTokens}` : ''}`,
    dtype: context.dtype,
    ranks: context.ranks,
    ours: measured(0, pick),
    ...(both.length > 1 && { baseline: measured(1, pick) }),
    ...work,
    memoryPeak: 'read',
    computePeak: context.dtype,
    tokens,
    ...placement,
    checked: (verified?.positions ?? 0) + context.rounds,
    wrong: (verified?.wrong ?? 0) + unsteady,
  })
  const { sequences, promptTokens } = one
  return [
    row('prefill', prefillWork(shape, one), sequences * promptTokens, (sample) => sample.prefillUs),
    row('decode', decodeWork(shape, one), sequences, (sample) => sample.decodeUs),
  ]
}

/** Weights as stored, and the KV cache that was asked for. */
function memoryDetails(shape: LlamaShape, kvBytes: number, memory: MemoryReply) {
  const weightBytes = 2 * countParameters(shape)
  const boundBytes = weightBytes + kvBytes + MEMORY_ALLOWANCE_BYTES
  return {
    weightBytes,
    kvBytes,
    boundBytes,
    ...memory,
    withinBound: memory.peakRssBytes <= boundBytes,
  }
}

function describeMemory(name: string, memory: ReturnType<typeof memoryDetails>): string {
  const mb = (bytes: number) => (bytes / 1e6).toFixed(0)
  return `${name}: peak RSS ${mb(memory.peakRssBytes)} MB for ${mb(memory.weightBytes)} MB of weights and ${mb(memory.kvBytes)} MB of KV cache (weights + KV + 200 MiB = ${mb(memory.boundBytes)} MB)`
}

interface Verification extends LogitsComparison {
  /** Whose logits ours were compared with. */
  readonly reference: string
}

/** Logits of the CPU kernels, in a process that ends with the question. */
async function cpuLogits(request: LoadRequest, tokens: readonly number[], sides: SideProcess[]) {
  const side = new SideProcess('nanoweave')
  sides.push(side)
  try {
    await side.ask({ ...request, device: 'cpu' })
    return (await side.ask({ kind: 'logits', tokens })).logits
  } finally {
    await side.close()
  }
}

/** `all` are the processes that an interrupt must end. */
async function verify(
  context: BenchContext,
  sides: Sides,
  shape: LlamaShape,
  request: LoadRequest,
  all: SideProcess[],
): Promise<Verification | undefined> {
  const tokens = checkTokens(shape.vocab)
  const compare = async (reference: string, logits: Float32Array): Promise<Verification> => {
    const ours = await sides.ours.ask({ kind: 'logits', tokens })
    return { reference, ...compareLogits(ours.logits, logits, shape.vocab) }
  }
  if (sides.theirs !== undefined) {
    const { logits } = await sides.theirs.ask({ kind: 'logits', tokens })
    return compare(sides.theirs.name, logits)
  }
  const recorded = readCheckLogits(request.model, shape.vocab)
  if (recorded !== undefined) return compare('transformers', recorded)
  if (backendOf(context.device) === 'cpu') return undefined
  return compare('the CPU kernels', await cpuLogits(request, tokens, all))
}

async function runEngineBench(context: BenchContext): Promise<SuiteResult> {
  const shape = findShape(context.settings.get('model') ?? DEFAULT_MODEL[backendOf(context.device)])
  const cases = context.sizes.map(parseCase)
  const directory = path.join(context.cacheDirectory, 'bench-models')
  context.log(`model ${shape.name}, ${(countParameters(shape) / 1e6).toFixed(1)} M parameters`)
  const folder = await ensureCheckpoint(shape, SEED, directory)
  const backend = backendOf(context.device)
  // Fails before minutes of loading where there is no such device.
  placeBench(context.device, context.ranks)
  const peer = backend === 'cpu' ? findPeer(context.cacheDirectory) : undefined

  const sequences = Math.max(...cases.map((one) => one.sequences))
  const contextTokens = Math.max(
    CHECKED_POSITIONS,
    ...cases.map((one) => one.promptTokens + one.newTokens),
  )
  // One token to spare: a step may be in flight beyond the last one.
  const blocksPerSequence = Math.ceil((contextTokens + 1) / KV_BLOCK_TOKENS)
  const kvBytes = sequences * blocksPerSequence * KV_BLOCK_TOKENS * kvBytesPerToken(shape)
  const settings = Object.fromEntries(context.settings)
  const request: LoadRequest = {
    kind: 'load',
    model: folder,
    device: context.device,
    threads: context.threads,
    contextTokens: blocksPerSequence * KV_BLOCK_TOKENS,
    sequences,
    batchTokens: STEP_TOKENS[backend],
    kvBytes,
    settings: { ...settings, tensorParallel: context.ranks, precision: context.dtype },
  }
  const ours = new SideProcess('nanoweave')
  const theirs = peer === undefined ? undefined : new SideProcess('node-llama-cpp')
  const all = theirs === undefined ? [ours] : [ours, theirs]
  const stop = () => {
    for (const side of all) side.kill()
  }
  context.signal.addEventListener('abort', stop)
  try {
    context.signal.throwIfAborted()
    context.log('loading')
    const about = await ours.ask(request)
    const peerAbout =
      peer === undefined
        ? undefined
        : await theirs?.ask({
            ...request,
            model: ensureGguf(shape, SEED, folder),
            settings: {
              packageFolder: peer.folder,
              vocab: shape.vocab,
              flashAttention: settings.flashAttention !== 'off',
            },
          })
    context.log('verifying')
    const sides = { ours, theirs }
    const verified = await verify(context, sides, shape, request, all)
    const pids = sides.theirs === undefined ? [ours.pid] : [ours.pid, sides.theirs.pid]
    const meter = new DisturbanceMeter(pids, context.quiet)
    const rows: BenchRow[] = []
    for (const one of cases) {
      context.log(`measuring ${one.sequences}×${one.promptTokens}+${one.newTokens}`)
      rows.push(...(await measureCase(context, shape, sides, meter, one, verified)))
    }
    const memory = memoryDetails(shape, kvBytes, await ours.ask({ kind: 'memory' }))
    const peerMemory =
      theirs === undefined
        ? undefined
        : memoryDetails(shape, kvBytes, await theirs.ask({ kind: 'memory' }))
    const notes = [
      'prefill: sequences × prompt tokens until every sequence has its first token. decode: one step of all sequences, at the given prompt + output lengths.',
      meter.describe(),
    ]
    if (backend === 'cpu') notes.push(describeMemory('nanoweave', memory))
    if (peerMemory !== undefined) notes.push(describeMemory('node-llama-cpp', peerMemory))
    if (verified === undefined) {
      notes.push(
        `node-llama-cpp is not installed, so there is nothing to compare with and logits are not checked. To get it: ${installPeerCommand(context.cacheDirectory)}`,
      )
    } else {
      notes.push(
        `same model as ${verified.reference}: relative difference of logits ${verified.relativeError.toExponential(1)}, same top token at ${verified.sameTop} of ${verified.positions} positions, ${verified.wrong} wrong`,
      )
    }
    return {
      rows,
      notes,
      details: {
        model: { name: shape.name, parameters: countParameters(shape), shape },
        nanoweave: { ...about, memory },
        disturbance: { shares: meter.shares, discarded: meter.discarded },
        ...(peer !== undefined && {
          'node-llama-cpp': { version: peer.version, ...peerAbout, memory: peerMemory },
        }),
        ...(verified !== undefined && { verification: verified }),
      },
    }
  } finally {
    context.signal.removeEventListener('abort', stop)
    await ours.close()
    await theirs?.close()
  }
}

export const engineSuite: BenchSuite = {
  name: 'engine',
  summary:
    'prefill and decode of a random Llama-shaped bf16 model: 0.5 B against node-llama-cpp, on a GPU 8 B',
  sizeNames: ['sequences', 'prompt tokens', 'new tokens'],
  defaultSizes: [
    [1, 512, 64],
    [8, 128, 64],
  ],
  gpuSizes: [
    [1, 128, 128],
    [8, 128, 128],
    [64, 128, 128],
    [256, 128, 128],
    [1, 8192, 8],
  ],
  settingNames: ['model', 'cpuIsa', 'nanoBatches', 'flashAttention'],
  run: runEngineBench,
}
