/**
 * A model on the native runtime without an engine: one sequence, steps encoded by hand. Shows that
 * programs and weights are right independently of scheduling.
 */

import {
  RESULT_SECTION,
  ROW_FLAG,
  SLOT_PARAM_WORDS,
  STEP_SECTION,
  STEP_VERSION,
} from '../../lib/engine/step.ts'
import { compileModel, type Model } from '../../lib/models/index.ts'
import type { CompiledModel } from '../../lib/models/types.ts'
import type { NativeRuntime } from '../../lib/native/binding.ts'
import { loadBinding } from '../../lib/native/load.ts'
import type { LaneMode } from '../../lib/program/passes/lanes.ts'
import type { MatmulOverlap } from '../../lib/program/passes/overlap-matmul.ts'
import type { Program, ProgramOp } from '../../lib/program/types.ts'
import { TEST_DEVICE } from './device.ts'

export interface BareOptions {
  readonly tp: number
  readonly ep?: number
  readonly precision?: 'auto' | 'f32' | 'bf16'
  /** Part counts to compile programs for. */
  readonly parts: readonly number[]
  readonly maxTokens: number
  readonly maxModelLen?: number
  /** How parts trail each other and share lanes. */
  readonly stagger?: number
  readonly lanes?: LaneMode
  readonly overlap?: MatmulOverlap | undefined
  readonly graphs?: boolean
  /** Of each rank; all on the device under test by default. */
  readonly devices?: readonly string[]
  /** Attributes that an op gets before it is loaded. */
  readonly attrsOf?: (op: ProgramOp) => ProgramOp['attrs']
  /** What becomes of a compiled program before it is loaded. */
  readonly change?: (program: Program) => Program
}

const BLOCK_SIZE = 16

type Section = readonly [kind: number, words: ArrayLike<number>]

/** Header, table, sections; see lib/engine/step.ts. */
function encodeEnvelope(sections: readonly Section[], group: number): Int32Array {
  const words = [STEP_VERSION, 1, 0, 0, sections.length]
  let offset = words.length + 4 * sections.length
  for (const [kind, content] of sections) {
    words.push(kind, group, offset, content.length)
    offset += content.length
  }
  for (const [, content] of sections) words.push(...Array.from(content))
  return Int32Array.from(words)
}

function sectionOf(words: Int32Array, kind: number, group: number): Int32Array {
  for (let entry = 0; entry < words[4]!; entry++) {
    const at = 5 + 4 * entry
    if (words[at] === kind && words[at + 1] === group)
      return words.subarray(words[at + 2]!, words[at + 2]! + words[at + 3]!)
  }
  return new Int32Array(0)
}

export interface StepOutcome {
  /** [tokens][vocab]. */
  readonly logits: Float32Array[]
  /** Sampled greedily from the last row. */
  readonly sampled: number
}

export class BareModel {
  readonly runtime: NativeRuntime
  readonly compiled: CompiledModel
  private readonly model: Model
  private readonly programs: ReadonlyMap<number, number>

  private constructor(
    model: Model,
    runtime: NativeRuntime,
    compiled: CompiledModel,
    programs: ReadonlyMap<number, number>,
  ) {
    this.model = model
    this.runtime = runtime
    this.compiled = compiled
    this.programs = programs
  }

  static async load(model: Model, options: BareOptions): Promise<BareModel> {
    const numBlocks = Math.ceil(options.maxTokens / BLOCK_SIZE) + 1
    const compiled = options.parts.map((parts) =>
      compileModel(model, {
        tensorParallel: options.tp,
        expertParallel: options.ep ?? 1,
        parts,
        ...(options.stagger !== undefined && { stagger: options.stagger }),
        ...(options.lanes !== undefined && { lanes: options.lanes }),
        overlap: options.overlap,
        precision: options.precision ?? 'f32',
        limits: {
          maxTokens: options.maxTokens,
          maxRows: options.maxTokens,
          maxSeqs: 1,
          numBlocks,
          blockSize: BLOCK_SIZE,
          maxBlocksPerSeq: numBlocks,
          numSlots: 1,
        },
        ...(options.maxModelLen !== undefined && { maxModelLen: options.maxModelLen }),
      }),
    )
    const world = Math.max(options.tp, options.ep ?? 1)
    const runtime = new (loadBinding().Runtime)({
      ranks: Array.from({ length: world }, (_, rank) => ({
        device: options.devices?.[rank] ?? TEST_DEVICE,
      })),
      tp: options.tp,
      heapBytes: Math.max(...compiled.map(({ program }) => program.arenaBytes)),
      threadsPerRank: 1,
      waitTimeoutMs: 30_000,
      deterministic: false,
      cpuIsa: 'auto',
      graphs: options.graphs ?? true,
    })
    try {
      await runtime.loadWeights(JSON.stringify(compiled[0]!.manifest))
      const programs = new Map<number, number>()
      for (const { program } of compiled) {
        const ops = program.ops.map((op) => ({
          ...op,
          attrs: { ...op.attrs, ...options.attrsOf?.(op) },
        }))
        const changed = { ...program, ops }
        const json = JSON.stringify(options.change?.(changed) ?? changed)
        programs.set(program.parts, await runtime.loadProgram(json))
      }
      return new BareModel(model, runtime, compiled[0]!, programs)
    } catch (error) {
      await runtime.close()
      throw error
    }
  }

  /** The attention group that has the sequence; the others have no tokens. */
  group = 0

  /** Runs `tokens` at `start` of the sequence; the first step of a sequence must start at 0. */
  async step(tokens: readonly number[], start: number, parts: number): Promise<StepOutcome> {
    const count = tokens.length
    const rows = Array.from({ length: count }, (_, row) => row)
    // Blocks in descending order: a program that ignored the table would be found out.
    const numBlocks = Math.ceil((start + count) / BLOCK_SIZE)
    const last = this.compiled.program.limits.numBlocks - 1
    const table = Array.from({ length: numBlocks }, (_, block) => last - block)
    const slotOf = (position: number) =>
      table[Math.floor(position / BLOCK_SIZE)]! * BLOCK_SIZE + (position % BLOCK_SIZE)
    const bounds = Array.from({ length: parts + 1 }, (_, part) =>
      Math.min(count, part * Math.ceil(count / parts)),
    )
    const sections: Section[] = [
      [STEP_SECTION.partBounds, bounds],
      [STEP_SECTION.tokens, tokens],
      [STEP_SECTION.positions, rows.map((row) => start + row)],
      [STEP_SECTION.kvSlots, rows.map((row) => slotOf(start + row))],
      [STEP_SECTION.seqStarts, [0, count]],
      [STEP_SECTION.seqLens, [start + count]],
      [STEP_SECTION.blockTables, table],
      [
        STEP_SECTION.rows,
        rows.flatMap((row) => {
          const isLast = row === count - 1
          return [row, isLast ? 0 : -1, -1, ROW_FLAG.logits | (isLast ? ROW_FLAG.sample : 0)]
        }),
      ],
    ]
    // Temperature 0 and no penalties: repetition penalty 1, top-p 1.
    if (start === 0) {
      const one = new Int32Array(Float32Array.of(1).buffer)[0]!
      const params = Array<number>(SLOT_PARAM_WORDS).fill(0).with(5, one).with(7, one)
      sections.push([STEP_SECTION.slotParams, params])
    }
    const result = await this.runtime.submit(
      this.programs.get(parts)!,
      encodeEnvelope(sections, this.group),
    )
    const words = sectionOf(result, RESULT_SECTION.logits, this.group)
    const { vocabSize } = this.model
    const logits = rows.map((row) => {
      const at = row * (vocabSize + 1)
      if (words[at] !== row) throw new Error(`no logits of row ${row}`)
      return new Float32Array(words.slice(at + 1, at + 1 + vocabSize).buffer)
    })
    return { logits, sampled: sectionOf(result, RESULT_SECTION.sampled, this.group)[count - 1]! }
  }

  /** Logits of every token of a prompt, computed `chunk` tokens a step. */
  async forward(tokens: readonly number[], chunk: number, parts: number): Promise<Float32Array[]> {
    const logits: Float32Array[] = []
    for (let start = 0; start < tokens.length; start += chunk) {
      const outcome = await this.step(tokens.slice(start, start + chunk), start, parts)
      logits.push(...outcome.logits)
    }
    return logits
  }

  close(): Promise<void> {
    return this.runtime.close()
  }
}
