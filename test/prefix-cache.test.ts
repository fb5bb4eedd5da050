import { describe, expect, it } from 'vitest'
import { BlockPool } from '../lib/kv/block-pool.ts'
import { PrefixCache } from '../lib/kv/prefix-cache.ts'
import { sipHash128 } from '../lib/kv/siphash.ts'
import { createRandom } from './support/random.ts'

const KEY = Int32Array.of(1, 2, 3, 4)
const BLOCK = 4

function setup(numBlocks = 16) {
  const pool = new BlockPool(numBlocks)
  const cache = new PrefixCache(pool, BLOCK, KEY)
  const root = cache.root('model', '')
  /** Computes tokens block by block, without looking anything up. */
  const compute = (tokens: number[], from = root) => {
    const chain = Int32Array.from(from)
    const words = Int32Array.from(tokens)
    const blocks: number[] = []
    for (let offset = 0; offset + BLOCK <= tokens.length; offset += BLOCK) {
      const block = pool.allocate()
      cache.enter(chain, words, offset, block)
      blocks.push(block)
    }
    return blocks
  }
  const match = (tokens: number[], from = root, limit = tokens.length) => {
    const blocks = new Int32Array(64)
    const found = cache.match(Int32Array.from(from), Int32Array.from(tokens), limit, blocks)
    return [...blocks.subarray(0, found)]
  }
  const release = (blocks: number[]) => {
    for (const block of blocks.toReversed()) pool.release(block)
  }
  return { pool, cache, root, compute, match, release }
}

describe('sipHash128', () => {
  // From `openssl mac -macopt size:16 SIPHASH`, key 00..0f, message 00, 01, ….
  it.each([
    [0, 'a3817f04ba25a8e66df67214c7550293'],
    [4, 'f88164c12d9c8faf7d0f6e7c7bcd5579'],
    [8, '3b62a9ba6258f5610f83e264f31497b4'],
    [60, 'e3040c00eb28f15366ca73cbd872e740'],
    [80, 'd2c76ae17a4370f858fba4795a0df822'],
  ])('agrees with the reference on %i bytes', (bytes, expected) => {
    const ascending = (count: number) =>
      new Int32Array(Uint8Array.from({ length: count }, (_, i) => i).buffer)
    const out = new Int32Array(4)
    sipHash128(ascending(16), ascending(bytes), bytes / 4, out)
    expect(Buffer.from(out.buffer).toString('hex')).toBe(expected)
  })
})

describe('PrefixCache', () => {
  it('finds the longest run of whole blocks, and retains it', () => {
    const { pool, compute, match, release } = setup()
    const blocks = compute([1, 2, 3, 4, 5, 6, 7, 8, 9])
    release(blocks)
    expect(pool.numCached).toBe(2)
    expect(match([1, 2, 3, 4, 5, 6, 7, 8, 10, 11])).toEqual(blocks)
    expect(blocks.map((block) => pool.refCount(block))).toEqual([1, 1])
    expect(match([1, 2, 3, 4, 5, 6, 7, 0])).toEqual([blocks[0]])
    expect(match([0, 2, 3, 4, 5, 6, 7, 8])).toEqual([])
  })

  it('does not look beyond the limit', () => {
    const { compute, match } = setup()
    const blocks = compute([1, 2, 3, 4, 5, 6, 7, 8])
    expect(match([1, 2, 3, 4, 5, 6, 7, 8], undefined, 7)).toEqual([blocks[0]])
  })

  it('keeps models and salts apart', () => {
    const { cache, compute, match } = setup()
    compute([1, 2, 3, 4], cache.root('model', 'alice'))
    expect(match([1, 2, 3, 4])).toEqual([])
    expect(match([1, 2, 3, 4], cache.root('model', 'bob'))).toEqual([])
    expect(match([1, 2, 3, 4], cache.root('mode', 'lalice'))).toEqual([])
    expect(match([1, 2, 3, 4], cache.root('model', 'alice'))).toHaveLength(1)
  })

  it('the same tokens after another prefix are other content', () => {
    const { compute, match } = setup()
    compute([9, 9, 9, 9, 5, 6, 7, 8])
    expect(match([5, 6, 7, 8])).toEqual([])
  })

  it('keeps the first of two equal blocks; the second stays unknown', () => {
    const { pool, compute, match, release } = setup()
    const first = compute([1, 2, 3, 4])
    const second = compute([1, 2, 3, 4])
    expect(match([1, 2, 3, 4])).toEqual(first)
    release(second)
    expect([pool.numFree, pool.numCached]).toEqual([15, 0])
  })

  it('forgets evicted blocks, tails first', () => {
    const { pool, compute, match, release } = setup(2)
    const blocks = compute([1, 2, 3, 4, 5, 6, 7, 8])
    release(blocks)
    expect(pool.allocate()).toBe(blocks[1])
    expect(match([1, 2, 3, 4, 5, 6, 7, 8])).toEqual([blocks[0]])
  })

  it('agrees with a map of prefixes over random traces, collisions of table slots included', () => {
    const random = createRandom(11)
    const { pool, cache, root, match, release } = setup(48)
    const known = new Map<string, number>()
    pool.onEvict((block) => {
      for (const [prefix, owner] of known) if (owner === block) known.delete(prefix)
      cache.evict(block)
    })
    for (let round = 0; round < 4000; round++) {
      const tokens = Array.from({ length: 4 * random.int(1, 6) }, () => random.int(0, 1))
      const expected: number[] = []
      for (let end = BLOCK; end <= tokens.length; end += BLOCK) {
        const block = known.get(tokens.slice(0, end).join())
        if (block === undefined) break
        expected.push(block)
      }
      const found = match(tokens)
      expect(found).toEqual(expected)
      const chain = Int32Array.from(root)
      const words = Int32Array.from(tokens)
      const held = [...found]
      for (let index = 0; index * BLOCK < tokens.length; index++) {
        const block = index < found.length ? found[index] : pool.allocate()
        if (index >= found.length) held.push(block)
        cache.enter(chain, words, index * BLOCK, block)
        const prefix = tokens.slice(0, (index + 1) * BLOCK).join()
        if (!known.has(prefix)) known.set(prefix, block)
      }
      release(held)
      expect(pool.numUsed).toBe(0)
      expect(pool.numCached).toBe(known.size)
    }
  })
})
