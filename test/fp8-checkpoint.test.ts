/**
 * Checkpoints in fp8 (e4m3, a factor for every block of 128 × 128): copies of the demo model with
 * experts, made here. They must give the very logits of the same values stored as bf16.
 */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { loadModel } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { createFolder } from './support/checkpoint-folder.ts'
import { errorOf } from './support/errors.ts'
import { type FactorDtype, fp8Copies, quantise, withFp8 } from './support/fp8.ts'
import { maxDifference } from './support/golden.ts'
import { fromBf16, readTensors, writeTensors } from './support/tensors.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-moe', import.meta.url))
const TOKENS = [1, 680, 679, 266, 678, 454, 305, 266, 1028]

const CONFIG = JSON.parse(readFileSync(`${FOLDER}/config.json`, 'utf8'))
const FP8_CONFIG = withFp8(CONFIG)

async function logitsOf(folder: string, tp: number, ep: number): Promise<Float32Array[]> {
  const bare = await BareModel.load(loadModel(folder), { tp, ep, parts: [1], maxTokens: 16 })
  try {
    return await bare.forward(TOKENS, TOKENS.length, 1)
  } finally {
    await bare.close()
  }
}

describe('an fp8 checkpoint', () => {
  // The first two layers; the last stays as it is, for the sake of time.
  const copiesOf = (factors: FactorDtype) =>
    fp8Copies(`${FOLDER}/model.safetensors`, /layers\.[01]\..*_proj\.weight$/, factors)
  const COPIES = { F32: copiesOf('F32'), BF16: copiesOf('BF16') }

  it.each([
    ['F32', 1, 1],
    ['F32', 2, 2],
    ['F32', 2, 1],
    ['F32', 1, 4],
    ['BF16', 1, 1],
    ['BF16', 2, 1],
    ['BF16', 1, 4],
  ] as const)('means what its bytes and %s factors say, tp %i, ep %i', async (factors, tp, ep) => {
    const copies = COPIES[factors]
    using fp8 = createFolder({
      'config.json': JSON.stringify(FP8_CONFIG),
      'model.safetensors': copies.fp8,
    })
    using meant = createFolder({
      'config.json': JSON.stringify(CONFIG),
      'model.safetensors': copies.meant,
    })
    const logits = await logitsOf(fp8.path, tp, ep)
    expect(logits).toEqual(await logitsOf(meant.path, tp, ep))
    expect(maxDifference(logits, await logitsOf(FOLDER, tp, ep))).toBeGreaterThan(0)
  })

  it('holds the original within the rounding of the format', () => {
    const original = readTensors(`${FOLDER}/model.safetensors`)
    const { bytes, shape } = original.get('model.layers.0.mlp.experts.3.down_proj.weight')!
    const values = fromBf16(bytes)
    const { meant, scales } = quantise(values, shape as [number, number])
    // Three bits of fraction: half a step is 1/16; below the normal range steps are 2^-9.
    const smallest = Math.max(...scales) * 2 ** -10
    values.forEach((value, i) => {
      const error = Math.abs(meant[i]! - value)
      if (error > 1.0001 * Math.max(Math.abs(value) / 16, smallest)) {
        expect.fail(`weight ${i} is ${meant[i]}, it was ${value}`)
      }
    })
  })

  it('is refused with factors of another shape or dtype, or for other blocks', () => {
    using folder = createFolder({
      'config.json': JSON.stringify(FP8_CONFIG),
      'model.safetensors': COPIES.F32.fp8,
    })
    const tensors = readTensors(`${folder.path}/model.safetensors`)
    const name = 'model.layers.0.self_attn.q_proj.weight_scale_inv'
    for (const [dtype, shape] of [
      ['F32', [1, 4]],
      ['F16', [2, 2]],
      ['U8', [2, 2]],
    ] as const) {
      const bytes = new Uint8Array({ F32: 4, F16: 2, U8: 1 }[dtype] * 4)
      tensors.set(name, { dtype, shape, bytes })
      folder.write('model.safetensors', writeTensors(tensors))
      expect(errorOf(() => loadModel(folder.path)).code).toBe('ERR_TENSOR_SHAPE')
    }
    const quantization_config = { quant_method: 'fp8', weight_block_size: [64, 64] }
    folder.write('config.json', JSON.stringify({ ...CONFIG, quantization_config }))
    expect(errorOf(() => loadModel(folder.path)).code).toBe('ERR_UNSUPPORTED_MODEL')
  })
})
