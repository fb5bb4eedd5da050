/** A short run of the model-folder fuzzer; test/fuzz/fuzz.ts runs longer ones. */

import { expect, it } from 'vitest'
import { fuzz } from './fuzz.ts'

const TIMEOUT_MS = 300_000

it(
  '2,000 mutated configs, headers and indexes load or throw EngineErrors',
  () => {
    const { outcomes, iterations } = fuzz(2000, 1)
    expect(iterations).toBe(2000)
    // The mutations reach each layer of checks, and not all of them break the model.
    for (const code of [
      'loaded',
      'ERR_MODEL_CONFIG',
      'ERR_UNSUPPORTED_MODEL',
      'ERR_SAFETENSORS',
      'ERR_TENSOR_MISSING',
      'ERR_TENSOR_SHAPE',
    ]) {
      expect(outcomes[code], code).toBeGreaterThan(0)
    }
  },
  TIMEOUT_MS,
)
