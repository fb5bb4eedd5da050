/** Bench models: the random checkpoint is a valid one, and the GGUF holds the same weights. */

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  checkpointTensors,
  countParameters,
  ensureCheckpoint,
  findShape,
  layerMacsPerToken,
  shareTensors,
  weightBytesPerToken,
} from '../lib/bench/checkpoint.ts'
import { ensureGguf, ggufTensorName, interleaveRotaryRows } from '../lib/bench/gguf.ts'
import { readTensorIndex } from '../lib/weights/safetensors.ts'

const SEED = 3
const tiny = findShape('tiny')
let scratch: string
let folder: string

beforeAll(async () => {
  scratch = mkdtempSync(path.join(os.tmpdir(), 'bench-model-'))
  folder = await ensureCheckpoint(tiny, SEED, scratch)
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

describe('the random checkpoint', () => {
  it('is read by the safetensors reader, tensor for tensor', async () => {
    const index = await readTensorIndex(folder)
    const expected = checkpointTensors(tiny)
    expect(index.tensors.size).toBe(expected.length)
    for (const { name, shape } of expected) {
      expect(index.tensors.get(name)).toMatchObject({ dtype: 'BF16', shape })
    }
  })

  it('is the same for the same seed, and another for another', async () => {
    const again = await ensureCheckpoint(tiny, SEED, path.join(scratch, 'again'))
    const other = await ensureCheckpoint(tiny, SEED + 1, path.join(scratch, 'other'))
    const read = (from: string) => readFileSync(path.join(from, 'model.safetensors'))
    expect(read(again).equals(read(folder))).toBe(true)
    expect(read(other).equals(read(folder))).toBe(false)
  })

  it('is kept when it is whole and written again when it is not', async () => {
    const file = path.join(folder, 'model.safetensors')
    const before = statSync(file).mtimeMs
    await ensureCheckpoint(tiny, SEED, scratch)
    expect(statSync(file).mtimeMs).toBe(before)
    const whole = readFileSync(file)
    writeFileSync(file, whole.subarray(0, whole.length - 2))
    await ensureCheckpoint(tiny, SEED, scratch)
    expect(readFileSync(file).equals(whole)).toBe(true)
  })

  it('is the same bytes when several processes write it', async () => {
    const shape = { ...tiny, hidden: 128, vocab: 400, layers: 3 }
    const [one, several] = ['one', 'several'].map((name) => path.join(scratch, name))
    await ensureCheckpoint(shape, SEED, one!, 1)
    await ensureCheckpoint(shape, SEED, several!, 3)
    const read = (directory: string) =>
      readFileSync(path.join(directory, `llama-tiny-seed${SEED}`, 'model.safetensors'))
    expect(read(several!).equals(read(one!))).toBe(true)
    const shares = shareTensors(findShape('8b'), 16)
    const sorted = shares.flat().sort((a, b) => a - b)
    expect(sorted).toEqual([...checkpointTensors(findShape('8b')).keys()])
  })

  it('counts what decode must read and multiply', () => {
    const shape = findShape('0.5b')
    expect(countParameters(shape)).toBe(499_696_640)
    // All but the embedding table, of which one row.
    expect(weightBytesPerToken(shape)).toBe(2 * (499_696_640 - 31_999 * 1024))
    expect(layerMacsPerToken(shape)).toBe(24 * (1024 * (1024 + 512 + 512 + 1024) + 3 * 1024 * 4864))
  })

  it('refuses unknown shapes', () => {
    expect(() => findShape('7b')).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
  })
})

/** Just enough of a GGUF reader to find tensors. */
function readGguf(file: string) {
  const bytes = readFileSync(file)
  let at = 0
  /** Where the next `length` bytes start. */
  const take = (length: number) => {
    at += length
    return at - length
  }
  const u32 = () => bytes.readUInt32LE(take(4))
  const u64 = () => Number(bytes.readBigUInt64LE(take(8)))
  const text = () => {
    const length = u64()
    const start = take(length)
    return bytes.toString('utf8', start, start + length)
  }
  const value = (type: number): unknown => {
    if (type === 4) return u32()
    if (type === 5) return bytes.readInt32LE(take(4))
    if (type === 6) return bytes.readFloatLE(take(4))
    if (type === 8) return text()
    if (type === 9) {
      const item = u32()
      return Array.from({ length: u64() }, () => value(item))
    }
    throw new Error(`metadata type ${type}`)
  }
  expect(bytes.toString('latin1', 0, 4)).toBe('GGUF')
  take(4)
  expect(u32()).toBe(3)
  const [numTensors, numKeys] = [u64(), u64()]
  const metadata = new Map<string, unknown>()
  for (let i = 0; i < numKeys; i++) {
    const key = text()
    metadata.set(key, value(u32()))
  }
  const infos = Array.from({ length: numTensors }, () => {
    const name = text()
    const dims = Array.from({ length: u32() }, u64)
    return { name, dims, type: u32(), offset: u64() }
  })
  const start = Math.ceil(at / 32) * 32
  const tensors = new Map(infos.map((info) => [info.name, { ...info, at: start + info.offset }]))
  return { bytes, metadata, tensors }
}

describe('the GGUF', () => {
  it('describes the model and a vocabulary of its size', () => {
    const { metadata } = readGguf(ensureGguf(tiny, SEED, folder))
    expect(metadata.get('general.architecture')).toBe('llama')
    expect(metadata.get('llama.embedding_length')).toBe(tiny.hidden)
    expect(metadata.get('llama.attention.head_count_kv')).toBe(tiny.kvHeads)
    for (const list of ['tokens', 'scores', 'token_type']) {
      expect(metadata.get(`tokenizer.ggml.${list}`)).toHaveLength(tiny.vocab)
    }
    expect(new Set(metadata.get('tokenizer.ggml.tokens') as string[]).size).toBe(tiny.vocab)
  })

  it('holds every tensor: matrices bit for bit, norms widened, q and k with rows reordered', async () => {
    const { bytes, tensors } = readGguf(ensureGguf(tiny, SEED, folder))
    const source = readFileSync(path.join(folder, 'model.safetensors'))
    const dataStart = 8 + Number(source.readBigUInt64LE())
    expect(tensors.size).toBe(checkpointTensors(tiny).length)
    for (const tensor of checkpointTensors(tiny)) {
      const found = tensors.get(ggufTensorName(tensor.name))
      expect(found?.dims).toEqual([...tensor.shape].reverse())
      const at = found!.at
      expect(at % 32).toBe(0)
      const stored = source.subarray(
        dataStart + tensor.offset,
        dataStart + tensor.offset + tensor.bytes,
      )
      if (tensor.shape.length === 1) {
        expect(found?.type).toBe(0)
        for (let i = 0; i < tensor.shape[0]!; i++) expect(bytes.readFloatLE(at + 4 * i)).toBe(1)
      } else {
        expect(found?.type).toBe(30)
        const written = bytes.subarray(at, at + tensor.bytes)
        const reordered = /[qk]_proj/.test(tensor.name)
        expect(written.equals(stored)).toBe(!reordered)
      }
    }
  })

  it('puts rotary pair (i, i + D/2) of each head side by side', () => {
    // Two heads of four rows, one byte a row.
    const rows = Buffer.from([0, 1, 2, 3, 10, 11, 12, 13])
    expect([...interleaveRotaryRows(rows, 4, 1)]).toEqual([0, 2, 1, 3, 10, 12, 11, 13])
  })
})
