/**
 * One-op programs through the addon: buffers placed apart, split into nano-batches on request,
 * poisoned, filled, run and read. There is no second binding surface.
 */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import {
  RESULT_SECTION,
  STEP_HEADER_WORDS,
  STEP_SECTION_WORDS,
  STEP_VERSION,
} from '../../lib/engine/step.ts'
import type { NativeRuntime } from '../../lib/native/binding.ts'
import { loadBinding, toEngineError } from '../../lib/native/load.ts'
import type { ProgramBuilder } from '../../lib/program/builder.ts'
import { ARENA_ALIGNMENT } from '../../lib/program/memory.ts'
import { maxBytes } from '../../lib/program/shapes.ts'
import type { Program, ProgramBuffer, ProgramOp, View } from '../../lib/program/types.ts'
import type { WeightBuffer, WeightManifest } from '../../lib/weights/types.ts'
import { ON_CPU, TEST_DEVICE } from './device.ts'
import { decode, encode } from './elements.ts'

/** Levels of the CPU kernels, lowest first. */
export const CPU_ISAS = ['portable', 'avx2', 'avx512', 'avx512bf16', 'amx'] as const

let usable: readonly string[] | undefined

/** The levels this machine has; the others are printed once. A GPU has no levels to choose from. */
export function usableIsas(): readonly string[] {
  if (!ON_CPU) return ['auto']
  if (usable !== undefined) return usable
  const { Runtime } = loadBinding()
  usable = CPU_ISAS.filter((cpuIsa) => {
    try {
      const runtime = new Runtime({ ...runtimeOptions(1, 1), cpuIsa })
      void runtime.close()
      return true
    } catch (error) {
      if (toEngineError(error).code !== 'ERR_UNSUPPORTED_OPTION') throw error
      return false
    }
  })
  const missing = CPU_ISAS.filter((isa) => !usable!.includes(isa))
  if (missing.length > 0) console.log(`skipped, not on this machine: ${missing.join(', ')}`)
  return usable
}

export function runtimeOptions(ranks: number, heapBytes: number) {
  return {
    ranks: Array.from({ length: ranks }, () => ({ device: TEST_DEVICE })),
    tp: ranks,
    heapBytes,
    threadsPerRank: 1,
    waitTimeoutMs: 20_000,
    deterministic: false,
    cpuIsa: 'auto',
  }
}

/** Every arena buffer at bytes of its own, every op on one lane: nothing shares, order is serial. */
export function placeApart(builder: Pick<ProgramBuilder, 'build'>): Program {
  const program = builder.build()
  let end = 0
  const buffers = program.buffers.map((buffer) => {
    if (buffer.space !== 'arena') return buffer
    const offset = end
    end += Math.ceil(maxBytes(buffer, program.limits) / ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    return { ...buffer, offset }
  })
  const ops = program.ops.map((op) => ({ ...op, lane: 'compute' as const }))
  return { ...program, buffers, ops, arenaBytes: end }
}

/** Each op once per part, on the part's rows of [T, …] buffers and of the KV cache. */
export function splitIntoParts(program: Program, parts: number): Program {
  if (parts === 1) return program
  const inPart = (view: View, part: number, isInput: boolean): View => {
    const { space, shape } = program.buffers[view.buffer]!
    if (space === 'kv') return { ...view, part, ...(isInput ? { upTo: true } : {}) }
    return space === 'arena' && shape[0] === 'T' ? { ...view, part } : view
  }
  const ops = program.ops.flatMap((op) =>
    Array.from(
      { length: parts },
      (_, part): ProgramOp => ({
        ...op,
        label: `${op.label}#${part}`,
        inputs: op.inputs.map((view) => view && inPart(view, part, true)),
        outputs: op.outputs.map((view) => inPart(view, part, false)),
      }),
    ),
  )
  return { ...program, parts, ops }
}

/** Values of a weight buffer, for each rank; ranks beyond the list get the last one. */
export type WeightValues = Readonly<Record<string, readonly ArrayLike<number>[]>>

/** Writes weights.bin into `folder`. */
export function writeManifest(
  folder: string,
  program: Program,
  values: WeightValues,
): WeightManifest {
  const chunks: Uint8Array[] = []
  let end = 0
  const addBuffer = (buffer: ProgramBuffer): WeightBuffer => {
    const { name, space, dtype, layout } = buffer
    const shape = buffer.shape.map(Number)
    const [rows, cols] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!]
    const perRank = values[name] ?? []
    const ranks = Array.from({ length: space === 'kv' ? 0 : program.world }, (_, rank) => {
      const content = perRank[Math.min(rank, perRank.length - 1)]
      if (content === undefined) return []
      const bytes = encode(content, dtype)
      const offset = end
      chunks.push(bytes)
      end += bytes.length
      return [
        {
          file: 0,
          offset,
          dtype,
          rows,
          cols,
          rowStart: 0,
          rowCount: rows,
          colStart: 0,
          colCount: cols,
          destRow: 0,
          destCol: 0,
        },
      ]
    })
    return { name, space: space as 'weight' | 'kv', dtype, shape, layout: layout ?? 'plain', ranks }
  }
  const buffers = program.buffers.filter(({ space }) => space !== 'arena').map(addBuffer)
  const file = path.join(folder, 'weights.bin')
  writeFileSync(file, Buffer.concat(chunks))
  return { version: 1, files: [{ path: file, bytes: end }], buffers }
}

export interface OpenOptions {
  readonly weights?: WeightValues
  readonly cpuIsa?: string
  readonly threadsPerRank?: number
  readonly waitTimeoutMs?: number
  readonly deterministic?: boolean
}

/** A runtime that holds one program. */
export class OpRuntime {
  readonly program: Program
  readonly #runtime: NativeRuntime
  readonly #id: number

  private constructor(program: Program, runtime: NativeRuntime, id: number) {
    this.program = program
    this.#runtime = runtime
    this.#id = id
  }

  static async open(program: Program, options: OpenOptions = {}): Promise<OpRuntime> {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'nanoweave-ops-'))
    let runtime: NativeRuntime | undefined
    try {
      runtime = new (loadBinding().Runtime)({
        ...runtimeOptions(program.world, Math.max(program.arenaBytes, ARENA_ALIGNMENT)),
        tp: program.tp,
        cpuIsa: options.cpuIsa ?? 'auto',
        threadsPerRank: options.threadsPerRank ?? 1,
        waitTimeoutMs: options.waitTimeoutMs ?? 20_000,
        deterministic: options.deterministic ?? false,
      })
      const manifest = writeManifest(folder, program, options.weights ?? {})
      await runtime.loadWeights(JSON.stringify(manifest))
      const id = await runtime.loadProgram(JSON.stringify(program))
      return new OpRuntime(program, runtime, id)
    } catch (error) {
      await runtime?.close()
      throw toEngineError(error)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }

  /** Another program of the same runtime, whose heap it must fit; close() closes both. */
  async add(program: Program): Promise<OpRuntime> {
    const id = await this.#runtime.loadProgram(JSON.stringify(program))
    return new OpRuntime(program, this.#runtime, id)
  }

  /** Sets every byte of every activation and KV cache to 0xff: NaN in all float dtypes. */
  async poison(): Promise<void> {
    for (const buffer of this.program.buffers) {
      if (buffer.space === 'weight') continue
      const bytes = new Uint8Array(maxBytes(buffer, this.program.limits)).fill(0xff)
      for (let rank = 0; rank < this.program.world; rank++) {
        await this.#runtime.write(this.#scope(buffer), buffer.name, rank, bytes)
      }
    }
  }

  async write(name: string, rank: number, values: ArrayLike<number>): Promise<void> {
    const buffer = this.#buffer(name)
    const bytes = encode(values, buffer.dtype)
    await this.#runtime.write(this.#scope(buffer), name, rank, bytes)
  }

  async readBytes(name: string, rank: number): Promise<Uint8Array> {
    return this.#runtime.read(this.#scope(this.#buffer(name)), name, rank)
  }

  async read(name: string, rank: number): Promise<Float64Array> {
    return decode(await this.readBytes(name, rank), this.#buffer(name).dtype)
  }

  async submit(step: Int32Array): Promise<StepResult> {
    try {
      return decodeResult(await this.#runtime.submit(this.#id, step))
    } catch (error) {
      throw toEngineError(error)
    }
  }

  async close(): Promise<void> {
    await this.#runtime.close()
  }

  #buffer(name: string): ProgramBuffer {
    return this.program.buffers.find((buffer) => buffer.name === name)!
  }

  #scope(buffer: ProgramBuffer): number {
    return buffer.space === 'arena' ? this.#id : -1
  }
}

/** Words of a step, sections by attention group; keys are STEP_SECTION kinds. */
export function encodeStep(...groups: ReadonlyMap<number, ArrayLike<number>>[]): Int32Array {
  const sections = groups.flatMap((group, index) =>
    [...group].map(([kind, words]) => ({ kind, group: index, words })),
  )
  const table = STEP_HEADER_WORDS + sections.length * STEP_SECTION_WORDS
  const payload = sections.reduce((sum, { words }) => sum + words.length, 0)
  const step = new Int32Array(table + payload)
  step.set([STEP_VERSION, 1, 0, 0, sections.length])
  let entry = STEP_HEADER_WORDS
  let offset = table
  for (const { kind, group, words } of sections) {
    step.set([kind, group, offset, words.length], entry)
    step.set(Array.from(words), offset)
    entry += STEP_SECTION_WORDS
    offset += words.length
  }
  return step
}

/** Sections of a result by kind; empty when absent. */
export interface StepResult {
  readonly words: Int32Array
  readonly sampled: Int32Array
  readonly logprobs: Float32Array
  readonly topLogprobs: Int32Array
  readonly logits: Int32Array
}

function decodeResult(words: Int32Array): StepResult {
  const sections = new Map<number, Int32Array>()
  for (let i = 0; i < words[4]!; i++) {
    const [kind, , offset, length] = words.slice(
      STEP_HEADER_WORDS + i * STEP_SECTION_WORDS,
      STEP_HEADER_WORDS + (i + 1) * STEP_SECTION_WORDS,
    )
    sections.set(kind!, words.slice(offset!, offset! + length!))
  }
  const section = (kind: number) => sections.get(kind) ?? new Int32Array(0)
  return {
    words,
    sampled: section(RESULT_SECTION.sampled),
    logprobs: floatsOf(section(RESULT_SECTION.logprobs)),
    topLogprobs: section(RESULT_SECTION.topLogprobs),
    logits: section(RESULT_SECTION.logits),
  }
}

/** Words that are bit-cast floats. */
export function floatsOf(words: Int32Array): Float32Array {
  return new Float32Array(words.slice().buffer)
}

/** Floats as the words of a step. */
export function wordsOf(...values: number[]): number[] {
  return Array.from(new Int32Array(Float32Array.from(values).buffer))
}
