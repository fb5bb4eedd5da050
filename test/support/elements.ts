/** Numbers to the bytes of a buffer and back, written from the formats' definitions. */

import type { Dtype } from '../../lib/program/types.ts'

const scratchFloat = new Float32Array(1)
const scratchBits = new Uint32Array(scratchFloat.buffer)

/** Nearest, ties to even, of a float32. */
export function toBf16(value: number): number {
  scratchFloat[0] = value
  const bits = scratchBits[0]!
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}

export function fromBf16(bits: number): number {
  scratchBits[0] = bits << 16
  return scratchFloat[0]!
}

/** Nearest, ties to even. */
export function toF16(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  if (Number.isNaN(value)) return 0x7e00
  const magnitude = Math.abs(value)
  if (magnitude >= 65520) return sign | 0x7c00
  // The spacing of f16 around the value: 2^-24 below the normal range.
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude || 1e-30)))
  const spacing = 2 ** (exponent - 10)
  const steps = roundHalfEven(magnitude / spacing)
  return sign | (magnitude === 0 ? 0 : steps + (exponent + 14) * 1024)
}

export function fromF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const mantissa = bits & 1023
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : Number.NaN
  if (exponent === 0) return sign * mantissa * 2 ** -24
  return sign * (1024 + mantissa) * 2 ** (exponent - 25)
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value)
  const rest = value - floor
  if (rest !== 0.5) return Math.round(value)
  return floor % 2 === 0 ? floor : floor + 1
}

export function encode(values: ArrayLike<number>, dtype: Dtype): Uint8Array {
  switch (dtype) {
    case 'f32':
      return new Uint8Array(Float32Array.from(values).buffer)
    case 'bf16':
      return new Uint8Array(Uint16Array.from(values, toBf16).buffer)
    case 'f16':
      return new Uint8Array(Uint16Array.from(values, toF16).buffer)
    case 'i32':
      return new Uint8Array(Int32Array.from(values).buffer)
    case 'u8':
      return Uint8Array.from(values)
  }
}

/** `bytes` may start anywhere; the values are copied. */
export function decode(bytes: Uint8Array, dtype: Dtype): Float64Array {
  const owned = bytes.slice().buffer
  switch (dtype) {
    case 'f32':
      return Float64Array.from(new Float32Array(owned))
    case 'bf16':
      return Float64Array.from(new Uint16Array(owned), fromBf16)
    case 'f16':
      return Float64Array.from(new Uint16Array(owned), fromF16)
    case 'i32':
      return Float64Array.from(new Int32Array(owned))
    case 'u8':
      return Float64Array.from(new Uint8Array(owned))
  }
}

/** What is left of values once stored in a dtype. */
export function rounded(values: ArrayLike<number>, dtype: Dtype): Float64Array {
  return decode(encode(values, dtype), dtype)
}
