/** Engines over the fake binding, and what tests of them share. */

import { fileURLToPath } from 'node:url'
import { afterEach, expect } from 'vitest'
import { assembleEngine } from '../../lib/engine/assemble.ts'
import { Engine } from '../../lib/engine/engine.ts'
import type { EngineOptions, GenerateChunk } from '../../lib/engine/types.ts'
import { EngineError } from '../../lib/errors.ts'
import { createFakeBinding, type FakeOptions, type FakeRuntime } from './fake-binding.ts'
import { createRandom } from './random.ts'

export const FOLDER = fileURLToPath(new URL('../../models/tiny-dense', import.meta.url))
export const VOCAB = 2048

const engines: Engine[] = []
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.close()
})

/** Closed after each test. */
export async function open(
  options: EngineOptions = {},
  fake: FakeOptions = {},
): Promise<{ engine: Engine; runtime: FakeRuntime }> {
  const binding = createFakeBinding(fake)
  const engine = new Engine(await assembleEngine(FOLDER, options, binding))
  engines.push(engine)
  return { engine, runtime: binding.runtimes[0] }
}

/** Bytes of `blocks` KV blocks of tiny-dense at its own precision. */
export const kvBytes = (blocks: number) => blocks * 4 * 2 * 4 * 16 * 32 * 2

export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
  } catch (error) {
    expect(error).toBeInstanceOf(EngineError)
    return (error as EngineError).code
  }
  return 'none'
}

export async function collect(stream: AsyncIterable<GenerateChunk>) {
  const chunks: GenerateChunk[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return {
    chunks,
    text: chunks.map((chunk) => chunk.text).join(''),
    tokens: chunks.flatMap((chunk) => chunk.tokens),
  }
}

/** Turns of the event loop. */
export const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

/** `length` token ids, none of them special. */
export function prompt(length: number, seed = 1): number[] {
  const random = createRandom(seed)
  return Array.from({ length }, () => random.int(10, VOCAB - 1))
}
