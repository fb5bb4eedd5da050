/** GrammarPool on a vocabulary of a few letters: what holds a worker, and who waits for one. */

import { afterEach, expect, test } from 'vitest'
import { readGrammar } from '../lib/grammar/grammar.ts'
import { GrammarPool } from '../lib/grammar/pool.ts'
import { codeOf } from './support/fake-engine.ts'

const vocabulary = {
  kind: 'raw',
  pieces: ['a', 'b', '</s>'],
  special: [2],
  stopTokens: [2],
} as const
const grammar = (text: string) => readGrammar({ ebnf: `root ::= "${text}"` })
const fail = (error: unknown) => {
  throw error
}

const pools: GrammarPool[] = []
afterEach(async () => {
  for (const pool of pools.splice(0)) await pool.close()
})

function createPool(maxWorkers: number): GrammarPool {
  const pool = new GrammarPool({ vocabulary, vocabSize: 3, maxWorkers })
  pools.push(pool)
  return pool
}

test('a grammar that no token can begin holds no worker', { timeout: 30_000 }, async () => {
  const pool = createPool(2)
  for (const text of ['w', 'x', 'y', 'z', 'x'])
    expect(await codeOf(pool.open(grammar(text), fail))).toBe('ERR_USAGE')
  const matcher = await pool.open(grammar('b'), fail)
  expect(Array.from(matcher.mask)).toEqual([0b010])
  matcher.close()
})

test('who leaves gives up its place in line', { timeout: 30_000 }, async () => {
  const pool = createPool(1)
  const first = await pool.open(grammar('a'), fail)
  const clients = Array.from({ length: 256 }, () => new AbortController())
  const codes = clients.map(({ signal }, i) =>
    codeOf(pool.open(grammar('b'.repeat(i + 1)), fail, signal)),
  )
  expect(await codeOf(pool.open(grammar('ab'), fail))).toBe('ERR_QUEUE_FULL')
  // Its grammar is known, but nobody overtakes.
  const known = pool.open(grammar('a'), fail)
  for (const client of clients.slice(1)) client.abort()
  expect(await codeOf(known)).toBe('ERR_QUEUE_FULL')
  const knownLater = pool.open(grammar('a'), fail)
  clients[0].abort()
  expect(await Promise.all(codes)).toEqual(Array(256).fill('ERR_ABORTED'))
  expect(await codeOf(pool.open(grammar('bb'), fail, AbortSignal.abort()))).toBe('ERR_ABORTED')
  const second = await knownLater
  const waiting = pool.open(grammar('ba'), fail)
  first.close()
  second.close()
  const last = await waiting
  expect(Array.from(last.mask)).toEqual([0b010])
  last.close()
})
