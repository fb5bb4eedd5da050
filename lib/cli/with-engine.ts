/** Loads an engine for one command, with a progress bar, and closes it whatever happens. */

import { basename } from 'node:path'
import type { Engine } from '../engine/engine.ts'
import type { EngineOptions } from '../engine/types.ts'
import { createProgressBar } from './progress.ts'

export async function withEngine<T>(
  folder: string,
  options: EngineOptions,
  signal: AbortSignal,
  use: (engine: Engine) => Promise<T>,
): Promise<T> {
  // Only the commands that run a model pay for loading the engine's code.
  const library = await import('../engine/engine.ts')
  const bar = createProgressBar(`loading ${basename(folder)}`)
  let engine: Engine
  try {
    engine = await library.Engine.load(folder, { ...options, signal, onProgress: bar.update })
  } finally {
    bar.clear()
  }
  try {
    return await use(engine)
  } finally {
    await engine.close()
  }
}
