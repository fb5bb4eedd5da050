/** Conversion between float arrays and the bytes of a buffer, and random values in a dtype. */

import { fillUniformBf16, makeRandom } from './checkpoint.ts'

export type BenchDtype = 'f32' | 'bf16'

export function dtypeBytes(dtype: BenchDtype): number {
  return dtype === 'f32' ? 4 : 2
}

/** `bytes` may start anywhere; the values are copied. */
export function decodeFloats(bytes: Uint8Array, dtype: BenchDtype): Float32Array {
  const owned = bytes.slice().buffer
  if (dtype === 'f32') return new Float32Array(owned)
  const halves = new Uint16Array(owned)
  const words = new Uint32Array(halves.length)
  for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16
  return new Float32Array(words.buffer)
}

/** Values of a buffer one at a time, for checks that look at few of many. */
export function floatReader(bytes: Uint8Array, dtype: BenchDtype): (index: number) => number {
  if (dtype === 'f32') {
    const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
    return (index) => floats[index]!
  }
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)
  const word = new Uint32Array(1)
  const float = new Float32Array(word.buffer)
  return (index) => {
    word[0] = halves[index]! << 16
    return float[0]!
  }
}

/** The nearest value of the dtype, of two equally near ones the even. */
export function roundTo(value: number, dtype: BenchDtype): number {
  const float = new Float32Array([value])
  if (dtype === 'f32') return float[0]!
  const word = new Uint32Array(float.buffer)
  word[0] = ((word[0]! + 0x7fff + ((word[0]! >>> 16) & 1)) & 0xffff0000) >>> 0
  return float[0]!
}

/** Values made one by one; longer buffers repeat them. A prime, so that no row repeats another. */
const DRAWN_VALUES = 16_777_213

/** Uniform in [-halfWidth, halfWidth), the same for the same seed; f32 values are bf16-exact too. */
export function randomBytes(
  count: number,
  dtype: BenchDtype,
  halfWidth: number,
  seed: number,
): Uint8Array {
  const halves = new Uint16Array(count)
  fillUniformBf16(halves.subarray(0, DRAWN_VALUES), halfWidth, makeRandom(seed))
  for (let filled = DRAWN_VALUES; filled < count; filled *= 2) {
    halves.copyWithin(filled, 0, Math.min(filled, count - filled))
  }
  const bytes = new Uint8Array(halves.buffer)
  return dtype === 'bf16' ? bytes : new Uint8Array(decodeFloats(bytes, 'bf16').buffer)
}

/** Half the width that gives a uniform distribution this standard deviation. */
export function halfWidthOf(deviation: number): number {
  return deviation * Math.sqrt(3)
}

/**
 * How many of `actual` differ from `expected` by more than rounding explains: a share of the value
 * plus the same share of the typical value, for sums that cancel. NaN counts.
 */
export function countWrong(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  dtype: BenchDtype,
): number {
  const tolerance = dtype === 'f32' ? 1e-4 : 1.6e-2
  let squares = 0
  for (let i = 0; i < expected.length; i++) squares += expected[i]! ** 2
  const typical = Math.sqrt(squares / Math.max(1, expected.length))
  let wrong = 0
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!)
    if (!(difference <= tolerance * (Math.abs(expected[i]!) + typical))) wrong++
  }
  return wrong + Math.abs(actual.length - expected.length)
}
