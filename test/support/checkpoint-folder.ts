/** Temporary model folders: a config and safetensors files made of names, shapes and dtypes. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export type TestTensors = Readonly<
  Record<string, { readonly shape: readonly number[]; readonly dtype?: string }>
>

const BYTES: Readonly<Record<string, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  F8_E4M3: 1,
}

/** A safetensors file of zeros. */
export function encodeSafetensors(tensors: TestTensors): Buffer {
  let end = 0
  const header: Record<string, unknown> = {}
  for (const [name, { shape, dtype = 'F32' }] of Object.entries(tensors)) {
    const begin = end
    end += shape.reduce((bytes, size) => bytes * size, BYTES[dtype]!)
    header[name] = { dtype, shape, data_offsets: [begin, end] }
  }
  return withHeader(JSON.stringify(header), end)
}

/** A file with that header text and `dataBytes` zeros. */
export function withHeader(header: string | Buffer, dataBytes = 0): Buffer {
  const text = Buffer.from(header)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([length, text, Buffer.alloc(dataBytes)])
}

/** A folder that is removed when the returned object is disposed of. */
export function createFolder(files: Readonly<Record<string, string | Buffer>>): {
  readonly path: string
  write(name: string, content: string | Buffer): void
  [Symbol.dispose](): void
} {
  const path = mkdtempSync(join(tmpdir(), 'nanoweave-test-'))
  const write = (name: string, content: string | Buffer) => writeFileSync(join(path, name), content)
  for (const [name, content] of Object.entries(files)) write(name, content)
  return {
    path,
    write,
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  }
}
