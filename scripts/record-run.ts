/**
 * Records a run for the native driver: the compiled program, the weights manifest, the runtime's
 * options and a few steps of a model. Needs no addon: the recorded decode steps take their tokens from
 * the sampling slots. Usage: tsx scripts/record-run.ts MODEL FOLDER [--tp N] [--ep N]
 * [--parts N] [--overlap all_reduce:GROUPS|reduce_scatter:GROUPS] [--expert-slots N]
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  ROW_FLAG,
  SLOT_PARAM_WORDS,
  STEP_FLAG,
  STEP_HEADER_WORDS,
  STEP_SECTION,
  STEP_SECTION_WORDS,
  STEP_VERSION,
} from '../lib/engine/step.ts'
import { type CompiledModel, compileModel, loadModel } from '../lib/models/index.ts'
import type { RuntimeOptions } from '../lib/native/binding.ts'
import { ExpertBalancer, type ExpertUpdate } from '../lib/parallel/balance/balancer.ts'
import type { MatmulOverlap } from '../lib/program/passes/overlap-matmul.ts'

const BLOCK_SIZE = 16
const LIMITS = {
  maxTokens: 64,
  maxRows: 8,
  maxSeqs: 4,
  numBlocks: 32,
  blockSize: BLOCK_SIZE,
  maxBlocksPerSeq: 8,
  numSlots: 4,
}

interface RecordedSequence {
  readonly slot: number
  /** First KV block; its blocks are consecutive. */
  readonly block: number
  /** Tokens already in the cache. */
  readonly computed: number
  /** Tokens of this step. */
  readonly tokens: readonly number[]
}

const range = (length: number) => Array.from({ length }, (_, index) => index)

/** Words of one step in which every sequence samples its next token. */
function encodeStep(
  id: number,
  parts: number,
  sequences: readonly RecordedSequence[],
  slotParams: readonly number[],
  groups: number,
  experts: ExpertUpdate | undefined,
): Int32Array {
  const total = sequences.reduce((sum, { tokens }) => sum + tokens.length, 0)
  const positions = sequences.map((s) => range(s.tokens.length).map((i) => s.computed + i))
  const starts = [0]
  for (const { tokens } of sequences) starts.push(starts[starts.length - 1] + tokens.length)
  const blocks = range(LIMITS.maxBlocksPerSeq)
  const width = Math.max(
    ...sequences.map((s) => Math.ceil((s.computed + s.tokens.length) / BLOCK_SIZE)),
  )
  const partRows = Math.ceil(total / parts)
  const sections: [number, readonly number[]][] = [
    [STEP_SECTION.partBounds, range(parts + 1).map((part) => Math.min(total, part * partRows))],
    [STEP_SECTION.tokens, sequences.flatMap(({ tokens }) => tokens)],
    [STEP_SECTION.positions, positions.flat()],
    [
      STEP_SECTION.kvSlots,
      sequences.flatMap((s, i) => positions[i].map((p) => s.block * BLOCK_SIZE + p)),
    ],
    [STEP_SECTION.seqStarts, starts],
    [STEP_SECTION.seqLens, sequences.map((s) => s.computed + s.tokens.length)],
    [
      STEP_SECTION.blockTables,
      sequences.flatMap((s) => blocks.slice(0, width).map((b) => s.block + b)),
    ],
    [
      STEP_SECTION.rows,
      sequences.flatMap((s, i) => [
        starts[i + 1] - 1,
        s.slot,
        -1,
        ROW_FLAG.sample | ROW_FLAG.logprob | (3 << 8),
      ]),
    ],
    [STEP_SECTION.slotParams, slotParams],
  ]
  // Every attention group has the same sequences, in a cache of its own.
  const all = range(groups).flatMap((group) =>
    sections.map(([kind, body]) => ({ kind, group, body })),
  )
  for (const [kind, body] of expertSections(experts)) all.push({ kind, group: 0, body })
  const flags = experts === undefined ? 0 : STEP_FLAG.expertCounts | STEP_FLAG.expertChoices
  const words = [STEP_VERSION, id, flags, 0, all.length]
  let offset = STEP_HEADER_WORDS + all.length * STEP_SECTION_WORDS
  for (const { kind, group, body } of all) {
    words.push(kind, group, offset, body.length)
    offset += body.length
  }
  for (const { body } of all) words.push(...body)
  return Int32Array.from(words)
}

function expertSections(update: ExpertUpdate | undefined): [number, readonly number[]][] {
  if (update === undefined || update.tables.length === 0) return []
  const tables = update.tables.flatMap(({ number, slots }) => [number, ...slots])
  const copies = update.copies.flatMap(({ table, from, to }) => [table, from, to])
  return [
    [STEP_SECTION.expertTables, [update.hash, ...tables]],
    [STEP_SECTION.expertCopies, copies],
  ]
}

/** Moves experts for made-up loads; undefined where they stay. */
function balancerOf({ program, expertSlots }: CompiledModel): ExpertBalancer | undefined {
  const limits = program.limits.experts
  if (expertSlots === undefined || limits === undefined) return undefined
  const { count, positions, tables } = limits
  const balancer = new ExpertBalancer({
    layout: { experts: count, positions, slotsPerPosition: expertSlots.slotsPerPosition },
    tables: expertSlots.tables,
    policy: 'eplb',
    period: 1,
    copiesPerStep: 3,
    smallestMove: 1,
  })
  balancer.record([Int32Array.from(range(tables * count), (i) => 1 + ((7 * i) % 5) ** 3)])
  return balancer
}

function floatBits(value: number): number {
  return new Int32Array(Float32Array.of(value).buffer)[0]
}

/** Greedy for even slots; temperature, top-k, top-p and a repetition penalty for odd ones. */
function slotParamWords(slot: number): number[] {
  const sampled = slot % 2 === 1
  const words = [
    slot,
    1234 + slot,
    0,
    floatBits(sampled ? 0.8 : 0),
    sampled ? 20 : 0,
    floatBits(sampled ? 0.9 : 1),
    floatBits(0),
    floatBits(sampled ? 1.1 : 1),
    floatBits(0),
    floatBits(0),
    0,
    0,
  ]
  if (words.length !== SLOT_PARAM_WORDS) throw new Error('slotParams has another layout now')
  return words
}

interface Layout {
  readonly tp: number
  readonly ep: number
  readonly parts: number
  readonly overlap: MatmulOverlap | undefined
  /** Undefined: experts stay where they are loaded. */
  readonly expertSlots: number | undefined
}

function record(modelFolder: string, folder: string, layout: Layout): void {
  const { tp, ep, parts, overlap, expertSlots } = layout
  const model = loadModel(modelFolder)
  const compiled = compileModel(model, {
    tensorParallel: tp,
    expertParallel: ep,
    parts,
    overlap,
    precision: 'auto',
    limits: LIMITS,
    ...(expertSlots !== undefined && { expertPlacement: { extraSlots: expertSlots } }),
  })
  const { program, manifest } = compiled
  const balancer = balancerOf(compiled)
  const encode = (
    id: number,
    sequences: readonly RecordedSequence[],
    slotParams: readonly number[],
  ) => encodeStep(id, parts, sequences, slotParams, Math.max(tp, ep) / tp, balancer?.nextStep())
  const options: RuntimeOptions = {
    ranks: range(Math.max(tp, ep)).map(() => ({ device: 'cpu' })),
    tp,
    heapBytes: program.arenaBytes,
    threadsPerRank: 2,
    waitTimeoutMs: 60_000,
    deterministic: true,
    cpuIsa: 'auto',
  }
  const vocabSize = program.limits.vocabSize
  const prompt = (length: number, seed: number) =>
    range(length).map((i) => (seed + 37 * i) % vocabSize)
  const prefill: RecordedSequence[] = [
    { slot: 0, block: 0, computed: 0, tokens: prompt(21, 5) },
    { slot: 1, block: 8, computed: 0, tokens: prompt(9, 11) },
  ]
  const steps = [encode(1, prefill, [0, 1].flatMap(slotParamWords))]
  for (let i = 0; i < 6; i++) {
    const decode = prefill.map((s) => ({
      ...s,
      computed: s.tokens.length + i,
      tokens: [-(s.slot + 1)],
    }))
    // A new sequence joins in the middle, so that decode and prefill rows mix.
    if (i === 3) decode.push({ slot: 2, block: 16, computed: 0, tokens: prompt(13, 17) })
    steps.push(encode(2 + i, decode, i === 3 ? slotParamWords(2) : []))
  }

  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'program.json'), JSON.stringify(program))
  writeFileSync(join(folder, 'manifest.json'), JSON.stringify(manifest))
  writeFileSync(join(folder, 'config.json'), JSON.stringify(options))
  for (const [index, step] of steps.entries()) {
    writeFileSync(join(folder, `step-${String(index).padStart(3, '0')}.i32`), step)
  }
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tp: { type: 'string', default: '2' },
    ep: { type: 'string', default: '1' },
    parts: { type: 'string', default: '2' },
    overlap: { type: 'string', default: 'none:0' },
    'expert-slots': { type: 'string' },
  },
})

/** `all_reduce:2`: the form and the number of row groups. */
function overlapOf(text: string): MatmulOverlap | undefined {
  const [form, groups] = text.split(':')
  if (form !== 'all_reduce' && form !== 'reduce_scatter') return undefined
  return { form, groups: Number(groups) }
}

if (positionals.length !== 2) {
  process.stderr.write(
    'usage: tsx scripts/record-run.ts MODEL FOLDER [--tp N] [--ep N] [--parts N] [--overlap FORM:GROUPS] [--expert-slots N]\n',
  )
  process.exitCode = 2
} else {
  const [tp, ep, parts] = [values.tp, values.ep, values.parts].map(Number)
  const slots = values['expert-slots']
  record(positionals[0], positionals[1], {
    ...{ tp, ep, parts },
    overlap: overlapOf(values.overlap),
    expertSlots: slots === undefined ? undefined : Number(slots),
  })
}
