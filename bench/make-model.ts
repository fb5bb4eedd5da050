/**
 * Writes a random Llama-shaped checkpoint, and the same weights as GGUF when asked:
 *
 *   npx tsx bench/make-model.ts 0.5b [--seed N] [--out build/bench-models] [--gguf]
 *
 * `nanoweave bench engine` does the same when the files are missing; this is for using them elsewhere.
 * Prints the folder (or the .gguf file) and the number of parameters.
 */

import { parseArgs } from 'node:util'
import { countParameters, ensureCheckpoint, findShape } from '../lib/bench/checkpoint.ts'
import { ensureGguf } from '../lib/bench/gguf.ts'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seed: { type: 'string', default: '1' },
    out: { type: 'string', default: 'build/bench-models' },
    gguf: { type: 'boolean', default: false },
  },
})

const shape = findShape(positionals[0] ?? '0.5b')
const seed = Number(values.seed)
const folder = ensureCheckpoint(shape, seed, values.out)
console.log(values.gguf ? ensureGguf(shape, seed, folder) : folder)
console.log(`${(countParameters(shape) / 1e6).toFixed(1)} M parameters`)
