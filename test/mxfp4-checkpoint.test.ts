/**
 * MXFP4 checkpoints as gpt-oss publishes them: copies of the golden one, made here, with experts in
 * blocks of 32 four-bit floats and an exponent each. They must give the very logits of the same
 * values stored as bf16 with input features first.
 */

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { loadModel } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { createFolder } from './support/checkpoint-folder.ts'
import { errorOf } from './support/errors.ts'
import { goldenFolder, maxDifference, readGolden } from './support/golden.ts'
import { readTensors, type Tensor, toBf16, writeTensors } from './support/tensors.ts'

const FOLDER = goldenFolder('gpt-oss-sinks')
const BLOCK = 32
const TOKENS = readGolden(FOLDER)[1]!.tokens

/** Magnitudes of e2m1 by their three bits; the OCP specification of microscaling formats. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

function nearestE2m1(value: number): number {
  const distances = E2M1.map((magnitude) => Math.abs(Math.abs(value) - magnitude))
  return distances.indexOf(Math.min(...distances)) + (value < 0 ? 8 : 0)
}

function meaningOf(bits: number): number {
  return bits < 8 ? E2M1[bits]! : -E2M1[bits - 8]!
}

/** Rows of whole blocks → two elements to a byte, exponents (bias 127), and what they stand for. */
function quantise(values: ArrayLike<number>) {
  const bytes = new Uint8Array(values.length / 2)
  const exponents = new Uint8Array(values.length / BLOCK)
  const meant = new Float32Array(values.length)
  for (let block = 0; block < exponents.length; block++) {
    let largest = 0
    for (let i = 0; i < BLOCK; i++) {
      largest = Math.max(largest, Math.abs(values[block * BLOCK + i]!))
    }
    const exponent = largest === 0 ? -127 : Math.max(-127, Math.ceil(Math.log2(largest / 6)))
    exponents[block] = exponent + 127
    for (let i = 0; i < BLOCK; i++) {
      const at = block * BLOCK + i
      const bits = nearestE2m1(values[at]! / 2 ** exponent)
      bytes[at >> 1]! |= i % 2 === 0 ? bits : bits << 4
      meant[at] = meaningOf(bits) * 2 ** exponent
    }
  }
  return { bytes, exponents, meant }
}

/** [planes, rows, cols] → [planes, cols, rows]. */
function transposed(values: Float32Array, [planes, rows, cols]: readonly number[]): Float32Array {
  const size = rows! * cols!
  return Float32Array.from({ length: planes! * size }, (_, index) => {
    const [plane, inside] = [Math.floor(index / size), index % size]
    return values[plane * size + (inside % rows!) * cols! + Math.floor(inside / rows!)]!
  })
}

function floatsOf({ bytes }: Tensor): Float32Array {
  return new Float32Array(Uint8Array.from(bytes).buffer)
}

/** The model with experts in MXFP4, and with bf16 experts of the values that these stand for. */
function makeCopies() {
  const mxfp4 = readTensors(`${FOLDER}/model.safetensors`)
  const meant = new Map(mxfp4)
  for (const [name, tensor] of readTensors(`${FOLDER}/model.safetensors`)) {
    if (!/experts\.(gate_up|down)_proj$/.test(name)) continue
    const [planes, inputs, outputs] = tensor.shape as [number, number, number]
    const quantised = quantise(transposed(floatsOf(tensor), tensor.shape))
    const blocks = [planes, outputs, inputs / BLOCK]
    mxfp4.delete(name)
    mxfp4.set(`${name}_blocks`, {
      dtype: 'U8',
      shape: [...blocks, BLOCK / 2],
      bytes: quantised.bytes,
    })
    mxfp4.set(`${name}_scales`, { dtype: 'U8', shape: blocks, bytes: quantised.exponents })
    const values = transposed(quantised.meant, [planes, outputs, inputs])
    meant.set(name, { ...tensor, dtype: 'BF16', bytes: toBf16(values) })
  }
  return { mxfp4, meant }
}

const COPIES = makeCopies()
const CONFIG = JSON.parse(readFileSync(`${FOLDER}/config.json`, 'utf8'))
const MXFP4_CONFIG = {
  ...CONFIG,
  quantization_config: { quant_method: 'mxfp4', modules_to_not_convert: ['model.embed_tokens'] },
}

function folderOf(config: unknown, tensors: ReadonlyMap<string, Tensor>) {
  return createFolder({
    'config.json': JSON.stringify(config),
    'model.safetensors': writeTensors(tensors),
  })
}

async function logitsOf(folder: string, tp: number, ep: number): Promise<Float32Array[]> {
  const bare = await BareModel.load(loadModel(folder), { tp, ep, parts: [1], maxTokens: 16 })
  try {
    return await bare.forward(TOKENS, TOKENS.length, 1)
  } finally {
    await bare.close()
  }
}

describe('an MXFP4 checkpoint', () => {
  it.each([
    [1, 1],
    [2, 2],
    [4, 1],
    [2, 4],
    [1, 4],
  ])('means what its blocks and exponents say, tp %i, ep %i', async (tp, ep) => {
    using mxfp4 = folderOf(MXFP4_CONFIG, COPIES.mxfp4)
    using meant = folderOf(CONFIG, COPIES.meant)
    const logits = await logitsOf(mxfp4.path, tp, ep)
    expect(logits).toEqual(await logitsOf(meant.path, tp, ep))
    const difference = maxDifference(logits, await logitsOf(FOLDER, tp, ep))
    expect(difference).toBeGreaterThan(0)
    expect(difference).toBeLessThan(Infinity)
  })

  it('says what loading converts', () => {
    using mxfp4 = folderOf(MXFP4_CONFIG, COPIES.mxfp4)
    using meant = folderOf(CONFIG, COPIES.meant)
    expect(loadModel(mxfp4.path)).toMatchObject({
      weightDtype: 'bf16',
      convertedFormats: ['mxfp4'],
    })
    expect(loadModel(meant.path).convertedFormats).toEqual([])
  })

  it('holds the original within the rounding of the format', () => {
    const original = readTensors(`${FOLDER}/model.safetensors`)
    const values = floatsOf(original.get('model.layers.0.mlp.experts.gate_up_proj')!)
    const { meant, exponents } = quantise(values)
    // One bit of fraction: half a step is a quarter; below 1 steps are a half.
    values.forEach((value, i) => {
      const scale = 2 ** (exponents[Math.floor(i / BLOCK)]! - 127)
      const error = Math.abs(meant[i]! - value)
      if (error > Math.max(Math.abs(value) / 4, scale / 4)) {
        expect.fail(`weight ${i} is ${meant[i]}, it was ${value}`)
      }
    })
  })

  const NAME = 'model.layers.1.mlp.experts.down_proj'
  const zeros = (shape: readonly number[], dtype = 'U8'): Tensor => ({
    dtype,
    shape,
    bytes: new Uint8Array(shape.reduce((a, b) => a * b, dtype === 'U8' ? 1 : 4)),
  })

  it.each<[string, (tensors: Map<string, Tensor>) => unknown, string]>([
    ['no exponents', (t) => t.delete(`${NAME}_scales`), 'ERR_TENSOR_MISSING'],
    ['no blocks', (t) => t.delete(`${NAME}_blocks`), 'ERR_TENSOR_MISSING'],
    ['fewer exponents', (t) => t.set(`${NAME}_scales`, zeros([8, 64, 3])), 'ERR_TENSOR_SHAPE'],
    ['exponents in a row', (t) => t.set(`${NAME}_scales`, zeros([2048])), 'ERR_TENSOR_SHAPE'],
    [
      'float exponents',
      (t) => t.set(`${NAME}_scales`, zeros([8, 64, 4], 'F32')),
      'ERR_TENSOR_SHAPE',
    ],
    [
      'blocks of 16 bytes in other places',
      (t) => t.set(`${NAME}_blocks`, zeros([8, 64, 16, 4])),
      'ERR_TENSOR_SHAPE',
    ],
    ['blocks in a row', (t) => t.set(`${NAME}_blocks`, zeros([16])), 'ERR_TENSOR_SHAPE'],
    [
      'no expert',
      (t) => {
        t.set(`${NAME}_blocks`, zeros([0, 64, 4, 16]))
        t.set(`${NAME}_scales`, zeros([0, 64, 4]))
      },
      'ERR_TENSOR_SHAPE',
    ],
    [
      'wider rows than the config has',
      (t) => {
        t.set(`${NAME}_blocks`, zeros([8, 64, 5, 16]))
        t.set(`${NAME}_scales`, zeros([8, 64, 5]))
      },
      'ERR_TENSOR_SHAPE',
    ],
    [
      'both forms of a tensor',
      (t) => t.set(NAME, zeros([8, 128, 64], 'F32')),
      'ERR_UNSUPPORTED_MODEL',
    ],
    [
      'bytes without blocks',
      (t) => {
        t.delete(`${NAME}_blocks`)
        t.delete(`${NAME}_scales`)
        t.set(NAME, zeros([8, 128, 64]))
      },
      'ERR_UNSUPPORTED_MODEL',
    ],
  ])('%s: refused', (_, change, code) => {
    const tensors = new Map(COPIES.mxfp4)
    change(tensors)
    using folder = folderOf(MXFP4_CONFIG, tensors)
    expect(errorOf(() => loadModel(folder.path)).code).toBe(code)
  })

  it('an exponent of 255 is NaN, and reaches no other layer’s memory', async () => {
    const tensors = new Map(COPIES.mxfp4)
    const scales = tensors.get(`${NAME}_scales`)!
    tensors.set(`${NAME}_scales`, {
      ...scales,
      bytes: new Uint8Array(scales.bytes.length).fill(255),
    })
    using folder = folderOf(MXFP4_CONFIG, tensors)
    const logits = await logitsOf(folder.path, 1, 1)
    expect(logits[0]!.every(Number.isNaN)).toBe(true)
  })
})
