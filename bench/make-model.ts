/**
 * Writes a random Llama-shaped checkpoint, and the same weights as GGUF when asked:
 *
 *   npx tsx bench/make-model.ts 0.5b [--seed N] [--out build/bench-models] [--gguf]
 *
 * `nanoweave bench engine` does the same when the files are missing; this is for using them elsewhere.
 * Beside it stand the tokens whose logits other implementations are asked for (lib/bench/reference.ts).
 * Prints the folder (or the .gguf file) and the number of parameters.
 */

import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { countParameters, ensureCheckpoint, findShape } from '../lib/bench/checkpoint.ts'
import { ensureGguf } from '../lib/bench/gguf.ts'
import { CHECK_TOKENS_FILE, checkTokens } from '../lib/bench/reference.ts'

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
const folder = await ensureCheckpoint(shape, seed, values.out)
writeFileSync(path.join(folder, CHECK_TOKENS_FILE), JSON.stringify(checkTokens(shape.vocab)))
console.log(values.gguf ? ensureGguf(shape, seed, folder) : folder)
console.log(`${(countParameters(shape) / 1e6).toFixed(1)} M parameters`)
