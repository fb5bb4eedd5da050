/**
 * Records small op cases for the native driver (`nanoweave_driver cases FOLDER`), which runs them under
 * compute-sanitizer: a checker of device memory needs no JavaScript engine in its process.
 *
 *   NANOWEAVE_TEST_DEVICE=cuda:0 tsx test/gpu/record-cases.ts FOLDER
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { STEP_SECTION } from '../../lib/engine/step.ts'
import { ARENA_ALIGNMENT } from '../../lib/program/memory.ts'
import { maxBytes } from '../../lib/program/shapes.ts'
import { ATTENTION_CASES } from '../ops/attention.cases.ts'
import { COLLECTIVE_CASES } from '../ops/collectives.cases.ts'
import { MATMUL_CASES } from '../ops/matmul.cases.ts'
import type { OpCase } from '../ops/op-case.ts'
import { OVERLAP_CASES } from '../ops/overlap.cases.ts'
import { ROPE_CASES } from '../ops/rope.cases.ts'
import { ROW_CASES } from '../ops/rows.cases.ts'
import { TEST_DEVICE } from '../support/device.ts'
import { encode } from '../support/elements.ts'
import {
  encodeStep,
  placeApart,
  runtimeOptions,
  splitIntoParts,
  writeManifest,
} from '../support/native.ts'

/** A checker makes a kernel up to a hundred times slower: few elements, but every kernel. */
const MAX_BYTES = 96 * 1024

interface Recorded {
  readonly name: string
  readonly bytes: number
  save(folder: string, device: string): void
}

function prepare(opCase: OpCase): Recorded {
  const { builder, inputs, step, weights = {} } = opCase.make()
  const rows = step.get(STEP_SECTION.tokens)!.length
  const bounds = opCase.parts ?? [0, rows]
  const program = splitIntoParts(placeApart(builder), bounds.length - 1)
  const save = (folder: string, device: string) => {
    mkdirSync(folder, { recursive: true })
    const writes: { buffer: string; inProgram: boolean; rank: number; bytes: number }[] = []
    const chunks: Uint8Array[] = []
    for (const [name, perRank] of Object.entries(inputs)) {
      const { dtype, space } = program.buffers.find((buffer) => buffer.name === name)!
      for (let rank = 0; rank < program.world; rank++) {
        const bytes = encode(perRank[Math.min(rank, perRank.length - 1)]!, dtype)
        writes.push({ buffer: name, inProgram: space === 'arena', rank, bytes: bytes.length })
        chunks.push(bytes)
      }
    }
    const options = runtimeOptions(program.world, Math.max(program.arenaBytes, ARENA_ALIGNMENT))
    const ranks = options.ranks.map(() => ({ device }))
    const words = encodeStep(new Map([[STEP_SECTION.partBounds, bounds], ...step]))
    const write = (name: string, content: string | Uint8Array) =>
      writeFileSync(path.join(folder, name), content)
    write('config.json', JSON.stringify({ ...options, ranks, waitTimeoutMs: 120_000 }))
    write('manifest.json', JSON.stringify(writeManifest(folder, program, weights)))
    write('program.json', JSON.stringify(program))
    write('writes.json', JSON.stringify(writes))
    write('writes.bin', Buffer.concat(chunks))
    write('step-000.i32', new Uint8Array(words.buffer))
  }
  const bytes = program.buffers
    .filter(({ space }) => space !== 'weight')
    .reduce((sum, buffer) => sum + program.world * maxBytes(buffer, program.limits), 0)
  return { name: opCase.name, bytes, save }
}

const [, , target] = process.argv
if (target === undefined) {
  process.stderr.write('usage: tsx test/gpu/record-cases.ts FOLDER\n')
  process.exit(2)
}
rmSync(target, { recursive: true, force: true })
const all = [
  ...ROW_CASES,
  ...ROPE_CASES,
  ...MATMUL_CASES,
  ...ATTENTION_CASES,
  ...COLLECTIVE_CASES,
  ...OVERLAP_CASES,
].map(prepare)
const small = all.filter(({ bytes }) => bytes <= MAX_BYTES)
for (const [index, recorded] of small.entries()) {
  const plain = recorded.name.replace(/[^a-zA-Z0-9]+/g, '-').slice(0, 80)
  const folder = path.resolve(target, `${String(index).padStart(3, '0')}-${plain}`)
  recorded.save(folder, TEST_DEVICE)
}
process.stdout.write(
  `${small.length} cases recorded, ${all.length - small.length} left out as large\n`,
)
