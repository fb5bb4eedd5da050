/**
 * What the logits of a bench model are compared with: 64 tokens, the same for every run, and what
 * another implementation computed for them. node-llama-cpp where it takes part; else the file that
 * bench/peers/torch_baselines.py wrote beside the checkpoint (transformers, on the same weights); else
 * on a GPU our own CPU kernels, which the goldens tie to transformers.
 */

import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { EngineError } from '../errors.ts'
import { makeRandom } from './checkpoint.ts'

export const CHECKED_POSITIONS = 64

const SEED = 7

/** Names of the files beside a checkpoint: the tokens as JSON, the logits [64, vocab] as raw float32. */
export const CHECK_TOKENS_FILE = 'check-tokens.json'
const CHECK_LOGITS_FILE = 'check-logits.f32'

export function checkTokens(vocab: number): number[] {
  const random = makeRandom(SEED)
  return Array.from({ length: CHECKED_POSITIONS }, () => random() % vocab)
}

/** What transformers computed for checkTokens(); undefined where nobody ran it. */
export function readCheckLogits(folder: string, vocab: number): Float32Array | undefined {
  const file = path.join(folder, CHECK_LOGITS_FILE)
  if (!existsSync(file)) return undefined
  const bytes = readFileSync(file)
  if (bytes.length !== 4 * CHECKED_POSITIONS * vocab) {
    throw new EngineError('ERR_USAGE', `${file} is not [${CHECKED_POSITIONS}, ${vocab}] float32`)
  }
  return new Float32Array(Uint8Array.from(bytes).buffer)
}
