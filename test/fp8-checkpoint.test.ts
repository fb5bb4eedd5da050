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
import { maxDifference } from './support/golden.ts'
import { fromBf16, readTensors, toBf16, writeTensors } from './support/tensors.ts'

const FOLDER = fileURLToPath(new URL('../models/tiny-moe', import.meta.url))
const BLOCK = 128
const TOKENS = [1, 680, 679, 266, 678, 454, 305, 266, 1028]

/** The finite values of e4m3 by their bits; from the OCP specification of 8-bit floats. */
const E4M3 = Array.from({ length: 256 }, (_, bits) => {
  const [exponent, fraction] = [(bits >> 3) & 15, bits & 7]
  if (exponent === 15 && fraction === 7) return Number.NaN
  const magnitude = exponent === 0 ? fraction * 2 ** -9 : (1 + fraction / 8) * 2 ** (exponent - 7)
  return bits & 128 ? -magnitude : magnitude
})

const BITS = new Map(E4M3.map((value, bits) => [value, bits]))

/** Of a value within ±448; the largest three bits of fraction that a value's exponent allows. */
function nearestE4m3(value: number): number {
  const exponent = Math.max(-6, Math.floor(Math.log2(Math.abs(value))))
  const step = 2 ** (exponent - 3)
  return BITS.get(Math.round(value / step) * step)!
}

/** The bytes, the factors, and what they stand for, of a [rows, cols] matrix. */
function quantise(values: ArrayLike<number>, [rows, cols]: readonly [number, number]) {
  const blockCols = Math.ceil(cols / BLOCK)
  const largest = new Float64Array(Math.ceil(rows / BLOCK) * blockCols)
  const blockOf = (i: number) =>
    Math.floor(Math.floor(i / cols) / BLOCK) * blockCols + Math.floor((i % cols) / BLOCK)
  for (let i = 0; i < rows * cols; i++) {
    largest[blockOf(i)] = Math.max(largest[blockOf(i)]!, Math.abs(values[i]!))
  }
  const scales = Float32Array.from(largest, (value) => value / 448 || 1)
  const bytes = new Uint8Array(rows * cols)
  const meant = new Float32Array(rows * cols)
  for (let i = 0; i < bytes.length; i++) {
    const scale = scales[blockOf(i)]!
    bytes[i] = nearestE4m3(values[i]! / scale)
    meant[i] = E4M3[bytes[i]!]! * scale
  }
  return { bytes, scales, meant }
}

/** The same model in fp8, and with bf16 weights of the values that the fp8 ones stand for. */
function makeCopies(): { fp8: Buffer; meant: Buffer } {
  const original = readTensors(`${FOLDER}/model.safetensors`)
  const fp8 = new Map(original)
  const meant = new Map(original)
  for (const [name, { shape, bytes }] of original) {
    // The first two layers; the last stays as it is, for the sake of time.
    if (!/layers\.[01]\..*_proj\.weight$/.test(name)) continue
    const quantised = quantise(fromBf16(bytes), shape as [number, number])
    const blocks = shape.map((size) => Math.ceil(size / BLOCK))
    fp8.set(name, { dtype: 'F8_E4M3', shape, bytes: quantised.bytes })
    const scaleBytes = new Uint8Array(quantised.scales.buffer)
    fp8.set(`${name}_scale_inv`, { dtype: 'F32', shape: blocks, bytes: scaleBytes })
    meant.set(name, { dtype: 'BF16', shape, bytes: toBf16(quantised.meant) })
  }
  return { fp8: writeTensors(fp8), meant: writeTensors(meant) }
}

const CONFIG = JSON.parse(readFileSync(`${FOLDER}/config.json`, 'utf8'))
const FP8_CONFIG = {
  ...CONFIG,
  quantization_config: { quant_method: 'fp8', fmt: 'e4m3', weight_block_size: [128, 128] },
}

async function logitsOf(folder: string, tp: number, ep: number): Promise<Float32Array[]> {
  const bare = await BareModel.load(loadModel(folder), { tp, ep, parts: [1], maxTokens: 16 })
  try {
    return await bare.forward(TOKENS, TOKENS.length, 1)
  } finally {
    await bare.close()
  }
}

describe('an fp8 checkpoint', () => {
  const copies = makeCopies()

  it.each([
    [1, 1],
    [2, 2],
    [2, 1],
    [1, 4],
  ])('means what its bytes and factors say, tp %i, ep %i', async (tp, ep) => {
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

  it('is refused with factors of another shape, or for other blocks', () => {
    using folder = createFolder({
      'config.json': JSON.stringify(FP8_CONFIG),
      'model.safetensors': copies.fp8,
    })
    const tensors = readTensors(`${folder.path}/model.safetensors`)
    const name = 'model.layers.0.self_attn.q_proj.weight_scale_inv'
    tensors.set(name, { dtype: 'F32', shape: [1, 4], bytes: new Uint8Array(16) })
    folder.write('model.safetensors', writeTensors(tensors))
    expect(errorOf(() => loadModel(folder.path)).code).toBe('ERR_TENSOR_SHAPE')
    const quantization_config = { quant_method: 'fp8', weight_block_size: [64, 64] }
    folder.write('config.json', JSON.stringify({ ...CONFIG, quantization_config }))
    expect(errorOf(() => loadModel(folder.path)).code).toBe('ERR_UNSUPPORTED_MODEL')
  })
})
