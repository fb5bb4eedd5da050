import { describe, expect, it } from 'vitest'
import { BlockPool } from '../lib/kv/block-pool.ts'
import { createRandom } from './support/random.ts'

describe('BlockPool', () => {
  it('hands out every block once, then -1', () => {
    const pool = new BlockPool(5)
    const blocks = Array.from({ length: 5 }, () => pool.allocate())
    expect([...blocks].sort()).toEqual([0, 1, 2, 3, 4])
    expect(pool.allocate()).toBe(-1)
    expect(pool.numUsed).toBe(5)
  })

  it('takes free blocks before cached ones, and cached ones in the order they were released', () => {
    const pool = new BlockPool(4)
    const evicted: number[] = []
    pool.onEvict((block) => evicted.push(block))
    const [a, b, c] = [pool.allocate(), pool.allocate(), pool.allocate()]
    pool.markCached(a)
    pool.markCached(b)
    pool.release(a)
    pool.release(b)
    pool.release(c)
    expect([pool.numFree, pool.numCached, pool.numUsed]).toEqual([2, 2, 0])
    pool.allocate()
    pool.allocate()
    expect(evicted).toEqual([])
    expect([pool.allocate(), pool.allocate()]).toEqual([a, b])
    expect(evicted).toEqual([a, b])
  })

  it('keeps a block while anybody uses it', () => {
    const pool = new BlockPool(1)
    const block = pool.allocate()
    pool.retain(block)
    pool.release(block)
    expect(pool.allocate()).toBe(-1)
    pool.release(block)
    expect(pool.allocate()).toBe(block)
  })

  it('refuses to release a block that is not in use', () => {
    expect(() => new BlockPool(2).release(1)).toThrow(RangeError)
  })

  it('keeps free + cached + used = total and never hands out a used block (random trace)', () => {
    const random = createRandom(7)
    const pool = new BlockPool(64)
    const refs = new Map<number, number>()
    const cached = new Set<number>()
    pool.onEvict((block) => {
      expect(cached.delete(block)).toBe(true)
      expect(refs.has(block)).toBe(false)
    })
    for (let i = 0; i < 5_000; i++) {
      const held = [...refs.keys()]
      const pick = () => held[random.int(0, held.length - 1)]
      const action = random.int(0, 4)
      if (action <= 1) {
        const block = pool.allocate()
        expect(block >= 0).toBe(refs.size < 64)
        if (block >= 0) {
          expect(refs.has(block)).toBe(false)
          refs.set(block, 1)
        }
      } else if (action === 2 && held.length > 0) {
        const block = pick()
        pool.release(block)
        const left = (refs.get(block) as number) - 1
        if (left === 0) refs.delete(block)
        else refs.set(block, left)
      } else if (action === 3 && held.length > 0) {
        const block = pick()
        pool.markCached(block)
        cached.add(block)
      } else if (cached.size > 0) {
        const block = [...cached][random.int(0, cached.size - 1)]
        pool.retain(block)
        refs.set(block, (refs.get(block) ?? 0) + 1)
      }
      const idle = [...cached].filter((block) => !refs.has(block)).length
      expect([pool.numFree, pool.numCached, pool.numUsed]).toEqual([
        64 - refs.size - idle,
        idle,
        refs.size,
      ])
      expect([...refs].every(([block, count]) => pool.refCount(block) === count)).toBe(true)
    }
  })
})
