/** Copies of checkpoints in fp8: e4m3, a factor for every block of 128 × 128, float32 or bf16. */

import { fromBf16, readTensors, type Tensor, toBf16, writeTensors } from './tensors.ts'

const BLOCK = 128

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

/** As DeepSeek publishes the factors, and as Qwen does. */
export type FactorDtype = 'F32' | 'BF16'

/** The bytes, the factors, and what they stand for, of a [rows, cols] matrix. */
export function quantise(
  values: ArrayLike<number>,
  [rows, cols]: readonly [number, number],
  factors: FactorDtype = 'F32',
) {
  const blockCols = Math.ceil(cols / BLOCK)
  const largest = new Float64Array(Math.ceil(rows / BLOCK) * blockCols)
  const blockOf = (i: number) =>
    Math.floor(Math.floor(i / cols) / BLOCK) * blockCols + Math.floor((i % cols) / BLOCK)
  for (let i = 0; i < rows * cols; i++) {
    largest[blockOf(i)] = Math.max(largest[blockOf(i)]!, Math.abs(values[i]!))
  }
  const exact = Float32Array.from(largest, (value) => value / 448 || 1)
  const scales = factors === 'F32' ? exact : fromBf16(toBf16(exact))
  const bytes = new Uint8Array(rows * cols)
  const meant = new Float32Array(rows * cols)
  for (let i = 0; i < bytes.length; i++) {
    const scale = scales[blockOf(i)]!
    bytes[i] = nearestE4m3(Math.max(-448, Math.min(448, values[i]! / scale)))
    meant[i] = E4M3[bytes[i]!]! * scale
  }
  return { bytes, scales, meant }
}

function valuesOf({ dtype, bytes }: Tensor): Float32Array {
  return dtype === 'BF16' ? fromBf16(bytes) : new Float32Array(Uint8Array.from(bytes).buffer)
}

/** A checkpoint with fp8 in place of the matrices that `pattern` names, and with what they mean in bf16. */
export function fp8Copies(
  file: string,
  pattern: RegExp,
  factors: FactorDtype = 'F32',
): { fp8: Buffer; meant: Buffer } {
  const original = readTensors(file)
  const fp8 = new Map(original)
  const meant = new Map(original)
  for (const [name, tensor] of original) {
    if (!pattern.test(name)) continue
    const { shape } = tensor
    const quantised = quantise(valuesOf(tensor), shape as [number, number], factors)
    const blocks = shape.map((size) => Math.ceil(size / BLOCK))
    fp8.set(name, { dtype: 'F8_E4M3', shape, bytes: quantised.bytes })
    const { scales } = quantised
    const scaleBytes = factors === 'F32' ? new Uint8Array(scales.buffer) : toBf16(scales)
    fp8.set(`${name}_scale_inv`, { dtype: factors, shape: blocks, bytes: scaleBytes })
    meant.set(name, { dtype: 'BF16', shape, bytes: toBf16(quantised.meant) })
  }
  return { fp8: writeTensors(fp8), meant: writeTensors(meant) }
}

/** The config of such a checkpoint. */
export function withFp8(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const quantization_config = {
    quant_method: 'fp8',
    fmt: 'e4m3',
    weight_block_size: [BLOCK, BLOCK],
  }
  return { ...config, quantization_config }
}
