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

/** Uniform in [-halfWidth, halfWidth), the same for the same seed; f32 values are bf16-exact too. */
export function randomBytes(
  count: number,
  dtype: BenchDtype,
  halfWidth: number,
  seed: number,
): Uint8Array {
  const halves = new Uint16Array(count)
  fillUniformBf16(halves, halfWidth, makeRandom(seed))
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
