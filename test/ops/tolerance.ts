/**
 * How close outputs of ops must be to their references, in three classes; no test has a tolerance
 * of its own.
 *
 * - exact: copies, dispatch, indices, collectives on integer-valued inputs.
 * - close: sums in another order. ‖out − ref‖ / ‖ref‖, and no single element far off.
 * - agree: ranks and repeats are the same bytes.
 */

import { expect } from 'vitest'
import type { Dtype } from '../../lib/program/types.ts'

export type Tolerance = 'exact' | 'close'

/** Relative error of the whole, by dtype of the output. */
const CLOSE: Readonly<Partial<Record<Dtype, number>>> = { f32: 1e-5, bf16: 4e-3, f16: 1e-3 }
/** One element may be off by this many times its share of the whole. */
const ELEMENT_FACTOR = 16

export function expectExact(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  expect(actual.length).toBe(expected.length)
  for (let i = 0; i < expected.length; i++) {
    if (!Object.is(actual[i], expected[i]) && actual[i] !== expected[i]) {
      expect.fail(`element ${i} is ${actual[i]}, not ${expected[i]}`)
    }
  }
}

export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  dtype: Dtype,
): void {
  expect(actual.length).toBe(expected.length)
  const bound = CLOSE[dtype]!
  let squares = 0
  let errors = 0
  for (let i = 0; i < expected.length; i++) {
    squares += expected[i]! ** 2
    errors += (actual[i]! - expected[i]!) ** 2
  }
  const norm = Math.sqrt(squares)
  const relative = norm === 0 ? Math.sqrt(errors) : Math.sqrt(errors) / norm
  // Written so that NaN fails.
  if (!(relative <= bound)) expect.fail(`relative error ${relative}, at most ${bound}`)
  const typical = norm / Math.sqrt(Math.max(1, expected.length))
  for (let i = 0; i < expected.length; i++) {
    const allowed = ELEMENT_FACTOR * bound * (typical + Math.abs(expected[i]!))
    if (!(Math.abs(actual[i]! - expected[i]!) <= allowed)) {
      expect.fail(`element ${i} is ${actual[i]}, not ${expected[i]}`)
    }
  }
}

/** Relative error of a model's logits in 16 bits, against the reference in float32. */
const HALF_GOLDEN = { bf16: 3e-2, f16: 4e-3 } as const

/** Logits [tokens][vocab] of a model that computes in 16 bits. */
export function expectHalfGolden(
  actual: readonly Float32Array[],
  expected: readonly Float32Array[],
  dtype: keyof typeof HALF_GOLDEN,
): void {
  expect(actual.length).toBe(expected.length)
  let squares = 0
  let errors = 0
  actual.forEach((row, index) => {
    const wanted = expected[index]!
    expect(row.length).toBe(wanted.length)
    row.forEach((logit, token) => {
      squares += wanted[token]! ** 2
      errors += (logit - wanted[token]!) ** 2
    })
  })
  const relative = Math.sqrt(errors / squares)
  // Written so that NaN fails.
  if (!(relative <= HALF_GOLDEN[dtype]))
    expect.fail(`logits: relative error ${relative}, at most ${HALF_GOLDEN[dtype]} in ${dtype}`)
}

/** Bytes of several ranks, runs or forms of one computation. */
export function expectAgree(outputs: readonly Uint8Array[]): void {
  const first = Buffer.from(outputs[0]!)
  outputs.forEach((output, index) => {
    if (!first.equals(output)) expect.fail(`output ${index} has other bytes than output 0`)
  })
}

export function expectWithin(
  tolerance: Tolerance,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  dtype: Dtype,
): void {
  if (tolerance === 'exact') expectExact(actual, expected)
  else expectClose(actual, expected, dtype)
}
