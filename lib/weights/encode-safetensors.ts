/** Encodes float32 tensors as a safetensors file: 8-byte length, JSON header, data. */

export interface FloatTensor {
  readonly shape: readonly number[]
  readonly data: Float32Array
}

/** Tensors in the order of `tensors`, each [shape] float32, little-endian, without gaps. */
export function encodeSafetensors(tensors: Readonly<Record<string, FloatTensor>>): Buffer {
  const header: Record<string, object> = {}
  let offset = 0
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const end = offset + data.byteLength
    header[name] = { dtype: 'F32', shape, data_offsets: [offset, end] }
    offset = end
  }
  const json = Buffer.from(JSON.stringify(header))
  // Spaces align the data to 8 bytes.
  const headerBytes = Math.ceil(json.length / 8) * 8
  const file = Buffer.alloc(8 + headerBytes + offset, ' ')
  file.writeBigUInt64LE(BigInt(headerBytes))
  json.copy(file, 8)
  let position = 8 + headerBytes
  for (const { data } of Object.values(tensors)) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), position)
    position += data.byteLength
  }
  return file
}
