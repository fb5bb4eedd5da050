/** Golden checkpoints under changed configs. */

import { readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { loadModel, type Model } from '../../lib/models/index.ts'
import { createFolder } from './checkpoint-folder.ts'
import { goldenFolder } from './golden.ts'

/** Limits for programs that are compiled and not run. */
export const LIMITS = {
  maxTokens: 16,
  maxRows: 4,
  maxSeqs: 2,
  numBlocks: 8,
  blockSize: 16,
  maxBlocksPerSeq: 8,
  numSlots: 2,
}

export const configOf = (family: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(goldenFolder(family), 'config.json'), 'utf8'))

/** The golden checkpoint with another config. */
export function withConfig<T>(
  family: string,
  change: Record<string, unknown>,
  use: (model: Model) => T,
): T {
  using folder = createFolder({
    'config.json': JSON.stringify({ ...configOf(family), ...change }),
  })
  const weights = join(goldenFolder(family), 'model.safetensors')
  symlinkSync(weights, join(folder.path, 'model.safetensors'))
  return use(loadModel(folder.path))
}
