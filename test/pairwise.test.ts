/** The covering subset that the matrix on emulated GPUs runs. */

import { expect, it } from 'vitest'
import { coverPairs } from './support/pairwise.ts'

it('has every pair that occurs, and no case of its own', () => {
  const all = [1, 2, 3, 4, 5].flatMap((a) =>
    [1, 2, 4].flatMap((b) =>
      [true, false].flatMap((c) => (a === 5 && b === 4 ? [] : [{ a, b, c }])),
    ),
  )
  const chosen = coverPairs(all)
  expect(all).toEqual(expect.arrayContaining(chosen))
  expect(chosen.length).toBeLessThan(18)
  const pairs = (cases: readonly { a: number; b: number; c: boolean }[]) =>
    new Set(cases.flatMap(({ a, b, c }) => [`a${a} b${b}`, `a${a} c${c}`, `b${b} c${c}`]))
  expect(pairs(chosen)).toEqual(pairs(all))
})
