/** Whole safetensors files in memory, for tests that make copies of checkpoints in other formats. */

import { readFileSync } from 'node:fs'

export interface Tensor {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

export type Tensors = ReadonlyMap<string, Tensor>

export function readTensors(file: string): Map<string, Tensor> {
  const bytes = readFileSync(file)
  const size = Number(bytes.readBigUInt64LE())
  const header = JSON.parse(bytes.subarray(8, 8 + size).toString())
  delete header.__metadata__
  return new Map(
    Object.entries<{ dtype: string; shape: number[]; data_offsets: [number, number] }>(header).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end],
        },
      ]) => [name, { dtype, shape, bytes: bytes.subarray(8 + size + begin, 8 + size + end) }],
    ),
  )
}

export function writeTensors(tensors: Tensors): Buffer {
  let end = 0
  const header: Record<string, unknown> = {}
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] }
    end += bytes.length
  }
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([length, text, ...[...tensors.values()].map(({ bytes }) => bytes)])
}

export function fromBf16(bytes: Uint8Array): Float32Array {
  const halves = new Uint16Array(Uint8Array.from(bytes).buffer)
  const words = new Uint32Array(halves.length)
  for (let i = 0; i < words.length; i++) words[i] = halves[i]! << 16
  return new Float32Array(words.buffer)
}

/** Nearest, ties to even; finite values. */
export function toBf16(values: Float32Array): Uint8Array {
  const words = new Uint32Array(values.buffer)
  const halves = new Uint16Array(words.length)
  for (let i = 0; i < words.length; i++) {
    halves[i] = (words[i]! + 0x7fff + ((words[i]! >>> 16) & 1)) >>> 16
  }
  return new Uint8Array(halves.buffer)
}
