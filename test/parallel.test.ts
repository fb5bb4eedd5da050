/** Split arithmetic: shares cover the whole exactly once (or, KV heads, evenly often). */

import { describe, expect, it } from 'vitest'
import { canSplitHeads, headShare, vocabShare, widthShare } from '../lib/parallel/sharding.ts'

const DEGREES = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32]
const ranks = (tp: number) => Array.from({ length: tp }, (_, rank) => rank)

describe('vocabShare and widthShare', () => {
  for (const [name, share, multiple] of [
    ['vocabulary', vocabShare, 16],
    ['width', widthShare, 1],
  ] as const) {
    for (const total of [1, 7, 16, 100, 320, 1000, 32_000, 128_256, 151_936]) {
      it(`${name} of ${total}`, () => {
        for (const tp of DEGREES) {
          const shares = ranks(tp).map((rank) => share(total, tp, rank))
          let next = 0
          for (const { start, count, padded } of shares) {
            expect(start).toBe(next)
            expect(count).toBeGreaterThanOrEqual(0)
            expect(count).toBeLessThanOrEqual(padded)
            expect(padded).toBe(shares[0]!.padded)
            expect(padded % multiple).toBe(0)
            next += count
          }
          expect(next).toBe(total)
        }
      })
    }
  }

  it('pads a width only where it does not split evenly', () => {
    expect(widthShare(11_008, 4, 0)).toEqual({ start: 0, count: 2752, padded: 2752 })
    expect(widthShare(4, 4, 3)).toEqual({ start: 3, count: 1, padded: 1 })
    expect(widthShare(100, 8, 0)).toEqual({ start: 0, count: 16, padded: 16 })
    expect(widthShare(100, 8, 7)).toEqual({ start: 100, count: 0, padded: 16 })
  })

  it('places vocabulary rows where the embed op looks for them', () => {
    expect(vocabShare(320, 2, 1)).toEqual({ start: 160, count: 160, padded: 160 })
    expect(vocabShare(321, 2, 1)).toEqual({ start: 176, count: 145, padded: 176 })
  })
})

describe('heads', () => {
  it('split evenly, or are refused', () => {
    expect(DEGREES.filter((tp) => canSplitHeads(32, 8, tp))).toEqual([1, 2, 4, 8, 16, 32])
    expect(DEGREES.filter((tp) => canSplitHeads(14, 2, tp))).toEqual([1, 2])
    expect(DEGREES.filter((tp) => canSplitHeads(12, 12, tp))).toEqual([1, 2, 3, 4, 6])
    expect(DEGREES.filter((tp) => canSplitHeads(6, 4, tp))).toEqual([1, 2])
    expect(DEGREES.filter((tp) => canSplitHeads(8, 1, tp))).toEqual([1, 2, 4, 8])
  })

  for (const [heads, kvHeads] of [
    [8, 8],
    [8, 4],
    [8, 2],
    [8, 1],
    [32, 8],
    [12, 6],
  ] as const) {
    it(`${heads} heads, ${kvHeads} KV heads: every query head meets its own KV head`, () => {
      for (const tp of DEGREES.filter((degree) => canSplitHeads(heads, kvHeads, degree))) {
        const seen: number[] = []
        for (const rank of ranks(tp)) {
          const share = headShare(heads, kvHeads, tp, rank)
          for (let head = 0; head < share.heads; head++) {
            // As the attention op pairs them: local heads / local KV heads to a group.
            const local = Math.floor(head / (share.heads / share.kvHeads))
            const whole = share.firstHead + head
            expect(share.firstKvHead + local).toBe(Math.floor(whole / (heads / kvHeads)))
            seen.push(whole)
          }
        }
        expect(seen).toEqual(Array.from({ length: heads }, (_, head) => head))
      }
    })
  }
})
