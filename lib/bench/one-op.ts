/**
 * One-op programs: a microbenchmark is a program in which the same op stands once per set of
 * buffers, so that no op finds its operands in a cache, submitted like any step. There is no second
 * binding surface: buffers are filled and read with the runtime's test calls, time is what the
 * runtime reports for the step, divided by the number of ops.
 */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import {
  RESULT_SECTION,
  STEP_HEADER_WORDS,
  STEP_SECTION,
  STEP_SECTION_WORDS,
  STEP_VERSION,
} from '../engine/step.ts'
import { EngineError } from '../errors.ts'
import type { NativeRuntime } from '../native/binding.ts'
import { loadBinding, toEngineError } from '../native/load.ts'
import type { OpDraft } from '../ops/spec.ts'
import type { ProgramBuilder } from '../program/builder.ts'
import { ARENA_ALIGNMENT } from '../program/memory.ts'
import { maxBytes } from '../program/shapes.ts'
import type { Program, ProgramLimits } from '../program/types.ts'
import { validateProgram } from '../program/validate.ts'
import type { WeightBuffer, WeightManifest, WeightPiece } from '../weights/types.ts'
import { type BenchDtype, dtypeBytes } from './elements.ts'
import { backendOf, isVirtual, placeBench } from './placement.ts'
import type { BenchContext } from './suite.ts'

/** Bytes the sets of buffers of one rank come to at least: several times a last-level cache. */
const ROTATED_BYTES = { cpu: 128e6, cuda: 512e6 } as const
const MAX_SETS = 256

/** Sets of buffers for an op that touches `bytesPerSet`. */
export function countSets(bytesPerSet: number, device: string): number {
  const rotated = ROTATED_BYTES[backendOf(device)]
  return Math.max(2, Math.min(MAX_SETS, Math.ceil(rotated / bytesPerSet)))
}

/** Limits of a program without a KV cache and without sampling. */
export function rowLimits(maxTokens: number): ProgramLimits {
  return {
    maxTokens,
    maxRows: 1,
    maxSeqs: 1,
    numBlocks: 0,
    blockSize: 16,
    maxBlocksPerSeq: 0,
    vocabSize: 1,
    numSlots: 0,
  }
}

/**
 * Every arena buffer at bytes of its own, all ops on one lane in order. Nothing overlaps, so every
 * input keeps what was written to it.
 */
export function placeApart(builder: ProgramBuilder): Program {
  const program = builder.build()
  let end = 0
  const buffers = program.buffers.map((buffer) => {
    if (buffer.space !== 'arena') return buffer
    const offset = end
    end += Math.ceil(maxBytes(buffer, program.limits) / ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    return { ...buffer, offset }
  })
  const ops = program.ops.map((op) => ({ ...op, lane: 'compute' as const }))
  const placed: Program = { ...program, buffers, ops, arenaBytes: end }
  validateProgram(placed)
  return placed
}

/** Sections of a step for one attention group; kinds as in STEP_SECTION. */
export type StepSections = ReadonlyMap<number, readonly number[]>

/** The same sections for each of `groups` attention groups. */
export function encodeSections(sections: StepSections, groups = 1): Int32Array {
  const table = STEP_HEADER_WORDS + groups * sections.size * STEP_SECTION_WORDS
  const payload = [...sections.values()].reduce((sum, words) => sum + words.length, 0)
  const step = new Int32Array(table + groups * payload)
  step.set([STEP_VERSION, 0, 0, 0, groups * sections.size])
  let entry = STEP_HEADER_WORDS
  let offset = table
  for (let group = 0; group < groups; group++) {
    for (const [kind, words] of sections) {
      step.set([kind, group, offset, words.length], entry)
      step.set(words, offset)
      entry += STEP_SECTION_WORDS
      offset += words.length
    }
  }
  return step
}

/** A step of `rows` tokens of every group for programs without a KV cache; `bounds` of nano-batches. */
export function rowsStep(
  rows: number,
  groups = 1,
  bounds: readonly number[] = [0, rows],
): Int32Array {
  return encodeSections(
    new Map([
      [STEP_SECTION.partBounds, bounds],
      [STEP_SECTION.tokens, new Array<number>(rows).fill(0)],
      [STEP_SECTION.positions, Array.from({ length: rows }, (_, row) => row)],
    ]),
    groups,
  )
}

/** Microseconds the step ran, from a result's timings section. */
export function runMicroseconds(result: Int32Array): number {
  for (let i = 0; i < result[4]!; i++) {
    const entry = STEP_HEADER_WORDS + i * STEP_SECTION_WORDS
    if (result[entry] === RESULT_SECTION.timings) return result[result[entry + 2]! + 1]!
  }
  throw new EngineError('ERR_INTERNAL', 'the result of a step has no timings')
}

/** Contents of weight buffers by name; the same on all ranks. Others are zero. */
export type WeightContents = ReadonlyMap<
  string,
  { readonly dtype: BenchDtype; readonly bytes: Uint8Array }
>

/** A manifest for the weight and KV buffers of programs, and the file with their contents. */
function writeWeights(
  folder: string,
  programs: readonly Program[],
  world: number,
  contents: WeightContents,
): WeightManifest {
  // Buffers that share one array share its place in the file.
  const offsets = new Map<Uint8Array, number>()
  let end = 0
  for (const { bytes } of contents.values()) {
    if (offsets.has(bytes)) continue
    offsets.set(bytes, end)
    end += bytes.length
  }
  const file = path.join(folder, 'weights.bin')
  writeFileSync(file, Buffer.concat([...offsets.keys()]))

  const buffers = new Map<string, WeightBuffer>()
  for (const { name, space, dtype, shape, layout } of programs.flatMap((one) => one.buffers)) {
    if (space === 'arena') continue
    const content = contents.get(name)
    const [rows, cols] = shape.length === 1 ? [1, Number(shape[0])] : shape.map(Number)
    const pieces: WeightPiece[] =
      content === undefined
        ? []
        : [
            {
              file: 0,
              offset: offsets.get(content.bytes)!,
              dtype: content.dtype,
              rows: rows!,
              cols: cols!,
              rowStart: 0,
              rowCount: rows!,
              colStart: 0,
              colCount: cols!,
              destRow: 0,
              destCol: 0,
            },
          ]
    buffers.set(name, {
      name,
      space,
      dtype,
      shape: shape.map(Number),
      layout: layout ?? 'plain',
      ranks: space === 'kv' ? [] : Array.from({ length: world }, () => pieces),
    })
  }
  return { version: 1, files: [{ path: file, bytes: end }], buffers: [...buffers.values()] }
}

async function tryLoad(
  runtime: NativeRuntime,
  program: Program | EngineError,
): Promise<LoadedProgram> {
  if (program instanceof EngineError) return program
  try {
    return await runtime.loadProgram(JSON.stringify(program))
  } catch (error) {
    return toEngineError(error)
  }
}

/** A program that this version may not know how to say; what is wrong with it instead. */
export function tryBuild(build: () => Program): Program | EngineError {
  try {
    return build()
  } catch (error) {
    if (error instanceof EngineError && error.code === 'ERR_PROGRAM') return error
    throw error
  }
}

/** The op with one more attribute. */
export function withAttr(draft: OpDraft, name: string, value: string): OpDraft {
  return { ...draft, attrs: { ...draft.attrs, [name]: value } }
}

/** Id of a loaded program, or why an optional one was refused. */
type LoadedProgram = number | EngineError

/** A runtime with one or more programs loaded; the programs share weights, KV caches and the heap. */
export class OpRuntime {
  readonly #runtime: NativeRuntime
  readonly #programs: readonly LoadedProgram[]
  /** Ranks share a GPU. */
  readonly virtualRanks: boolean

  private constructor(
    runtime: NativeRuntime,
    programs: readonly LoadedProgram[],
    virtualRanks: boolean,
  ) {
    this.#runtime = runtime
    this.#programs = programs
    this.virtualRanks = virtualRanks
  }

  /** `optional` programs follow the others in number and may be refused: see refusal(). */
  static async open(
    context: BenchContext,
    programs: readonly Program[],
    contents: WeightContents,
    optional: readonly (Program | EngineError)[] = [],
  ): Promise<OpRuntime> {
    const isProgram = (one: Program | EngineError): one is Program => !(one instanceof EngineError)
    const all = [...programs, ...optional.filter(isProgram)]
    const { ranks, threads } = context
    const devices = placeBench(context.device, ranks)
    const folder = mkdtempSync(path.join(os.tmpdir(), 'nanoweave-bench-'))
    let runtime: NativeRuntime | undefined
    try {
      runtime = new (loadBinding().Runtime)({
        ranks: devices.map(({ name }) => ({ device: name })),
        tp: all[0]?.tp ?? ranks,
        heapBytes: Math.max(...all.map((program) => program.arenaBytes), ARENA_ALIGNMENT),
        threadsPerRank: Math.max(1, Math.floor(threads / ranks)),
        waitTimeoutMs: 60_000,
        deterministic: false,
        cpuIsa: context.settings.get('cpuIsa') ?? 'auto',
      })
      const manifest = writeWeights(folder, all, ranks, contents)
      await runtime.loadWeights(JSON.stringify(manifest))
      const loaded: LoadedProgram[] = []
      for (const program of programs) {
        loaded.push(await runtime.loadProgram(JSON.stringify(program)))
      }
      for (const program of optional) loaded.push(await tryLoad(runtime, program))
      return new OpRuntime(runtime, loaded, isVirtual(devices))
    } catch (error) {
      await runtime?.close()
      throw toEngineError(error)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }

  /** Why the program was not loaded; undefined when it was. */
  refusal(program: number): EngineError | undefined {
    const loaded = this.#programs[program]
    return loaded instanceof EngineError ? loaded : undefined
  }

  #id(program: number): number {
    const loaded = this.#programs[program]
    if (loaded instanceof EngineError) throw loaded
    if (loaded === undefined) throw new EngineError('ERR_INTERNAL', `no program ${program}`)
    return loaded
  }

  /** `program` indexes the programs given to open(); -1: a KV cache. */
  async write(program: number, buffer: string, rank: number, bytes: Uint8Array): Promise<void> {
    await this.#runtime.write(program < 0 ? -1 : this.#id(program), buffer, rank, bytes)
  }

  async read(program: number, buffer: string, rank: number): Promise<Uint8Array> {
    return this.#runtime.read(this.#id(program), buffer, rank)
  }

  /** Fills a buffer with NaN of every float dtype, so that an op that writes nothing is found out. */
  async poison(program: number, buffer: string, rank: number, bytes: number): Promise<void> {
    await this.write(program, buffer, rank, new Uint8Array(bytes).fill(0xff))
  }

  /** Microseconds of one step. */
  async run(program: number, step: Int32Array): Promise<number> {
    return runMicroseconds(await this.#runtime.submit(this.#id(program), step))
  }

  async close(): Promise<void> {
    await this.#runtime.close()
  }
}

/** Bytes of a [rows, cols] matrix. */
export function matrixBytes(rows: number, cols: number, dtype: BenchDtype): number {
  return rows * cols * dtypeBytes(dtype)
}
