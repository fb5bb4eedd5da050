/** Copies of golden checkpoints whose tensors are rounded to 16 bits. */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { decode, encode } from './elements.ts'

type Half = 'bf16' | 'f16'

const STORED = { F32: 'f32', BF16: 'bf16', F16: 'f16' } as const

interface Entry {
  dtype: keyof typeof STORED
  shape: number[]
  data_offsets: [number, number]
}

/** The safetensors file with every tensor in `dtype`. */
function convert(file: Buffer, dtype: Half): Buffer {
  const headerBytes = Number(file.readBigUInt64LE())
  const { __metadata__: _, ...tensors } = JSON.parse(
    file.subarray(8, 8 + headerBytes).toString(),
  ) as Record<string, Entry>
  const header: Record<string, Entry> = {}
  const chunks: Uint8Array[] = []
  let end = 0
  for (const [name, { dtype: stored, shape, data_offsets: at }] of Object.entries(tensors)) {
    const bytes = file.subarray(8 + headerBytes + at[0], 8 + headerBytes + at[1])
    const rounded = encode(decode(Uint8Array.from(bytes), STORED[stored]), dtype)
    const begin = end
    end += rounded.length
    header[name] = {
      dtype: dtype === 'bf16' ? 'BF16' : 'F16',
      shape,
      data_offsets: [begin, end],
    }
    chunks.push(rounded)
  }
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([length, text, ...chunks])
}

/** A folder that is removed when the returned object is disposed of. */
export function halfCheckpoint(folder: string, dtype: Half) {
  const path = mkdtempSync(join(tmpdir(), 'nanoweave-half-'))
  cpSync(join(folder, 'config.json'), join(path, 'config.json'))
  const file = readFileSync(join(folder, 'model.safetensors'))
  writeFileSync(join(path, 'model.safetensors'), convert(file, dtype))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}
