/**
 * Decoding of a model with experts against the same parameters run densely (dense-copy.ts), through
 * the public interface, greedy, each in a process of its own, in turn. What is gained is the weights
 * that a token does not read.
 */

import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, type Model, modelFootprint } from '../../models/index.ts'
import type { ExpertsSpec } from '../../models/spec.ts'
import { makeRandom } from '../checkpoint.ts'
import { compareLogits } from '../compare-logits.ts'
import { type DenseCopies, writeDenseCopies } from '../dense-copy.ts'
import { DisturbanceMeter } from '../disturbance.ts'
import { checkTokens } from '../reference.ts'
import { SideProcess } from '../sides/process.ts'
import type { LoadRequest } from '../sides/protocol.ts'
import { alternate, summarize } from '../stats.ts'
import type { BenchContext, BenchRow, BenchSuite, Measured, SuiteResult } from '../suite.ts'
import { decodeMsPerToken } from '../timeline.ts'

const DEMO_MODEL = fileURLToPath(new URL('../../../models/tiny-moe', import.meta.url))
const KV_BLOCK_TOKENS = 16
const CHECKED_TOKENS = 64

/** Names of the processes, in the order of their rows. */
const SIDES = ['experts', 'dense', 'all experts'] as const

interface Case {
  readonly sequences: number
  readonly promptTokens: number
  readonly newTokens: number
}

/** Multiplications of a token: parameters less the experts it does not choose, less a separate embedding. */
function activeParameters(model: Model): number {
  const { spec } = model
  const { parameters } = modelFootprint(model, { tensorParallel: 1, precision: 'auto' })
  const idle = spec.layers.reduce((sum, { feedForward }) => {
    const { gates, routing, intermediateSize } = feedForward as ExpertsSpec
    return sum + (gates.length - routing.choices) * 3 * intermediateSize * spec.hiddenSize
  }, 0)
  const tied = spec.head.tensor === spec.embedding.tensor
  return parameters - idle - (tied ? 0 : spec.vocabSize * spec.hiddenSize)
}

async function measure(side: SideProcess, one: Case, vocab: number): Promise<number> {
  const random = makeRandom(7)
  const prompts = Array.from({ length: one.sequences }, () =>
    Array.from({ length: one.promptTokens }, () => random() % vocab),
  )
  const { timesMs } = await side.ask({ kind: 'run', prompts, newTokens: one.newTokens })
  return decodeMsPerToken(timesMs) * 1000
}

/** The two copies compute the same function: top tokens and logits must agree. */
async function verify(dense: SideProcess, all: SideProcess, vocab: number) {
  const tokens = checkTokens(vocab).slice(0, CHECKED_TOKENS)
  const one = await dense.ask({ kind: 'logits', tokens })
  const other = await all.ask({ kind: 'logits', tokens })
  return compareLogits(one.logits, other.logits, vocab)
}

function requestOf(context: BenchContext, model: string, cases: readonly Case[]): LoadRequest {
  const sequences = Math.max(...cases.map((one) => one.sequences))
  const longest = Math.max(
    CHECKED_TOKENS,
    ...cases.map((one) => one.promptTokens + one.newTokens + 1),
  )
  return {
    kind: 'load',
    model,
    device: context.device,
    threads: context.threads,
    contextTokens: Math.ceil(longest / KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS,
    sequences,
    batchTokens: 512,
    kvBytes: 64 * 2 ** 20,
    settings: { tensorParallel: context.ranks, precision: context.dtype },
  }
}

async function runMoeDecode(context: BenchContext): Promise<SuiteResult> {
  const cases = context.sizes.map(([sequences, promptTokens, newTokens]) => ({
    sequences: sequences!,
    promptTokens: promptTokens!,
    newTokens: newTokens!,
  }))
  const model = loadModel(context.settings.get('model') ?? DEMO_MODEL)
  const folder = path.join(context.cacheDirectory, 'bench-models', path.basename(model.folder))
  const copies: DenseCopies = writeDenseCopies(model, `${folder}-copies`)
  const sides = SIDES.map(() => new SideProcess('nanoweave'))
  const stop = () => {
    for (const side of sides) side.kill()
  }
  context.signal.addEventListener('abort', stop)
  try {
    context.log('loading')
    const folders = [model.folder, copies.dense, copies.all]
    for (const [index, side] of sides.entries()) {
      await side.ask(requestOf(context, folders[index]!, cases))
    }
    context.log('verifying')
    const compared = await verify(sides[1]!, sides[2]!, model.vocabSize)
    const meter = new DisturbanceMeter(
      sides.map(({ pid }) => pid),
      context.quiet,
    )
    const rows: BenchRow[] = []
    for (const one of cases) {
      context.log(`measuring ${one.sequences}×${one.promptTokens}+${one.newTokens}`)
      for (const side of sides) await measure(side, one, model.vocabSize)
      const samples = await alternate(
        context.rounds,
        sides.map((side) => () => meter.watch(() => measure(side, one, model.vocabSize))),
      )
      rows.push(...rowsOf(context, model, one, samples, compared))
    }
    return {
      rows,
      notes: [
        `${path.basename(model.folder)} against the same parameters run densely. dense: its experts side by side as one feed-forward, no router; all experts: k = E behind a router of zeros`,
        `the two compute the same: relative difference of logits ${compared.relativeError.toExponential(1)}`,
        meter.describe(),
      ],
      details: { model: path.basename(model.folder), comparison: compared },
    }
  } finally {
    context.signal.removeEventListener('abort', stop)
    await Promise.all(sides.map((side) => side.close()))
  }
}

function rowsOf(
  context: BenchContext,
  model: Model,
  { sequences, promptTokens, newTokens }: Case,
  samples: readonly (readonly number[])[],
  { positions, wrong }: { readonly positions: number; readonly wrong: number },
): BenchRow[] {
  const measured = samples.map(
    (side, index): Measured => ({ name: SIDES[index]!, ...summarize(side) }),
  )
  const active = activeParameters(model)
  return measured.slice(1).map((baseline) => ({
    op: 'moe-decode',
    variant: `vs ${baseline.name}`,
    shape: `${sequences}×${promptTokens}+${newTokens}`,
    dtype: context.dtype,
    ranks: context.ranks,
    ours: measured[0]!,
    baseline,
    bytes: active * 2,
    flops: 2 * active * sequences,
    memoryPeak: 'read',
    computePeak: context.dtype,
    tokens: sequences,
    checked: positions,
    wrong,
  }))
}

export const moeDecodeSuite: BenchSuite = {
  name: 'moe-decode',
  summary: 'decoding with experts against the same parameters run densely',
  sizeNames: ['sequences', 'prompt tokens', 'new tokens'],
  defaultSizes: [[1, 32, 256]],
  gpuSizes: [[1, 32, 256]],
  settingNames: ['model'],
  run: runMoeDecode,
}
