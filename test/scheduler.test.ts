/** What the scheduler decides, case by case. */

import { describe, expect, it } from 'vitest'
import { EngineError } from '../lib/errors.ts'
import { createForkGroup } from '../lib/scheduler/sequence.ts'
import { Driver, eager } from './support/schedule-driver.ts'

const code = (run: () => unknown): string => {
  try {
    run()
  } catch (error) {
    if (error instanceof EngineError) return error.code
    throw error
  }
  return 'none'
}

describe('Scheduler', () => {
  it('prefills, then decodes one token a step, and never computes the last token', () => {
    const driver = new Driver()
    const sequence = driver.add(5, 3)
    driver.drain(1)
    expect(driver.log).toEqual(['0:0+5', '0:5+1', '0:6+1'])
    expect(sequence.numConfirmed).toBe(8)
    expect(sequence.numComputed).toBe(7)
  })

  it('plans a step ahead with tokens nobody has seen, none beyond the length limit', () => {
    const driver = new Driver()
    driver.add(5, 3)
    driver.plan()
    driver.plan()
    driver.plan()
    expect(driver.plan()).toBeUndefined()
    expect(driver.log).toEqual(['0:0+5', '0:5+1', '0:6+1'])
    driver.drain()
  })

  it('drops the token sampled after a stop noticed a step late', () => {
    const driver = new Driver()
    const sequence = driver.add(5, 50)
    driver.plan()
    driver.plan()
    expect(driver.settle(() => true)).toEqual([sequence])
    expect(sequence.state).toBe('ending')
    expect(driver.scheduler.blocks.numUsed).toBeGreaterThan(0)
    driver.settle()
    expect(sequence.state).toBe('ended')
    expect(sequence.numConfirmed).toBe(6)
    expect(driver.scheduler.stats().droppedTokens).toBe(1)
    expect(driver.scheduler.blocks.numUsed).toBe(0)
  })

  it('cuts a long prompt into chunks while others decode, decodes first', () => {
    const driver = new Driver()
    driver.add(4, 8)
    driver.plan()
    driver.settle()
    driver.add(70, 1)
    driver.drain(1)
    expect(driver.log.slice(1, 4)).toEqual(['0:4+1 1:0+31', '0:5+1 1:31+31', '0:6+1 1:62+8'])
  })

  it('shares a step between a long prompt and one that comes later', () => {
    const driver = new Driver()
    driver.add(100, 1)
    driver.plan()
    driver.add(10, 1)
    driver.plan()
    expect(driver.log).toEqual(['0:0+32', '0:32+22 1:0+10'])
    driver.drain()
  })

  it('admits any number of prompts that a step completes, and a bounded number of others', () => {
    const driver = new Driver()
    for (let i = 0; i < 8; i++) driver.add(4, 1)
    expect(driver.plan()?.numSeqs).toBe(8)
    driver.drain()

    const busy = new Driver({ maxNumBatchedTokens: 64, maxPartialPrefills: 2 })
    for (let i = 0; i < 4; i++) busy.add(60, 1)
    expect(busy.plan()?.numSeqs).toBe(2)
    busy.drain()
  })

  it('refuses what can never run, at once', () => {
    const driver = new Driver({ numBlocks: 8, maxNumSeqs: 1, maxWaiting: 1 })
    expect(code(() => driver.add(200, 57))).toBe('ERR_CONTEXT_LENGTH')
    expect(code(() => driver.add(20, 14))).toBe('ERR_KV_EXHAUSTED')
    expect(code(() => driver.add(20, 13))).toBe('none')
    expect(code(() => driver.add(4, 1))).toBe('none')
    expect(code(() => driver.add(4, 1))).toBe('ERR_QUEUE_FULL')
    driver.drain()
  })

  it('refuses a configuration in which decodes may not fit a step', () => {
    expect(code(() => new Driver({ maxNumBatchedTokens: 7 }))).toBe('ERR_USAGE')
    expect(code(() => new Driver({ maxRows: 7 }))).toBe('ERR_USAGE')
  })

  it('admits what was refused for its blocks although a pin has taken them since', () => {
    const driver = new Driver({ numBlocks: 16 })
    driver.add(12, 3, { pinTtlMs: 1e6 })
    const waiting = driver.add(56, 2)
    driver.drain()
    expect(waiting.state).toBe('ended')
  })

  it('computes the prompt of several outputs once and copies its last block', () => {
    const driver = new Driver({ prefixCache: false })
    const group = createForkGroup(3)
    const prompt = Array.from({ length: 10 }, (_, i) => 50 + i)
    const forks = [0, 1, 2].map(() => driver.add(prompt, 3, { group }))
    const first = driver.plan()
    expect(forks.map(({ state }) => state)).toEqual(['running', 'waiting', 'waiting'])
    expect(first?.numCopies).toBe(0)
    const second = driver.plan()
    expect(driver.log).toEqual(['0:0+10', '0:10+1 1:9+1 2:9+1'])
    const [leader, ...others] = forks.map(({ blocks }) => Array.from(blocks.subarray(0, 3)))
    for (const blocks of others) expect(blocks.slice(0, 2)).toEqual(leader.slice(0, 2))
    expect(new Set([leader, ...others].map((blocks) => blocks[2])).size).toBe(3)
    expect(Array.from(second?.copies.subarray(0, 4) ?? [])).toEqual(
      others.flatMap((blocks) => [leader[2], blocks[2]]),
    )
    expect(driver.scheduler.blocks.numUsed).toBe(5)
    expect(forks.map(({ numCachedTokens }) => numCachedTokens)).toEqual([0, 9, 9])
    driver.drain()
  })

  it('copies nothing where the last prompt token begins a block, or is alone', () => {
    for (const length of [1, 9]) {
      const driver = new Driver()
      const group = createForkGroup(4)
      for (let i = 0; i < 4; i++) driver.add(Array(length).fill(7), 6, { group })
      driver.plan()
      expect(driver.plan()?.numCopies).toBe(0)
      driver.drain()
    }
  })

  it('hands the prompt on when the output that computes it is cancelled', () => {
    const driver = new Driver({ prefixCache: false, maxNumBatchedTokens: 16 })
    const group = createForkGroup(3)
    const forks = [0, 1, 2].map(() => driver.add(Array(40).fill(9), 3, { group }))
    driver.plan()
    const later = driver.add(5, 3)
    driver.scheduler.end(forks[0], 'cancelled')
    expect(driver.scheduler.queuePosition(forks[1])).toBe(0)
    expect(driver.scheduler.queuePosition(later)).toBe(1)
    driver.drain()
    expect(forks.map(({ numConfirmed }) => numConfirmed)).toEqual([40, 43, 43])
    const chunks = driver.log.join(' ').split(' ')
    expect(chunks.filter((chunk) => chunk.startsWith('1:')).at(0)).toMatch(/^1:0\+/)
    expect(chunks.filter((chunk) => chunk.startsWith('2:')).at(0)).toBe('2:39+1')
  })

  it('starts with cached blocks and leaves at least one token to compute', () => {
    const driver = new Driver()
    const prompt = Array.from({ length: 12 }, (_, i) => i)
    driver.add(prompt, 1)
    driver.drain()
    const again = driver.add(prompt, 1)
    driver.drain()
    expect(again.numCachedTokens).toBe(8)
    expect(driver.log).toEqual(['0:0+12', '1:8+4'])
    const longer = driver.add([...prompt, 12], 1)
    driver.drain()
    expect(longer.numCachedTokens).toBe(12)
    const apart = driver.add(prompt, 1, { readsCache: false })
    driver.drain()
    expect(apart.numCachedTokens).toBe(0)
    expect(driver.scheduler.stats()).toMatchObject({ prefixQueries: 37, prefixHits: 20 })
  })

  it('reuses generated tokens, but never one that was dropped', () => {
    const driver = new Driver()
    const first = driver.add([1, 2, 3, 4, 5, 6], 50)
    driver.plan()
    driver.plan()
    driver.plan()
    driver.settle()
    driver.settle(() => true)
    driver.settle()
    // 8 tokens are confirmed and 8 computed: the last one by a step that was dropped.
    expect(first.numConfirmed).toBe(8)
    const output = [...first.tokens.subarray(0, 8)]
    const next = driver.add([...output, 99], 1)
    driver.drain()
    expect(next.numCachedTokens).toBe(8)
  })

  it('never reuses a token that was dropped by a cancel', () => {
    const driver = new Driver()
    const sequence = driver.add(7, 50)
    driver.plan()
    // Computes position 7, the end of a block, from a token nobody will ever see.
    driver.plan()
    driver.scheduler.end(sequence, 'cancelled')
    driver.settle()
    driver.settle()
    expect(driver.scheduler.blocks.numCached).toBe(1)
    expect(driver.scheduler.stats().droppedTokens).toBe(2)
  })

  it('finds what it computed before a preemption, and lets others find it', () => {
    const driver = new Driver({ numBlocks: 8, policy: eager })
    const sequences = [driver.add(8, 20), driver.add(8, 20)]
    driver.drain()
    const [, preempted] = sequences
    expect(preempted.numPreemptions).toBeGreaterThan(0)
    const reasons = preempted.decisions.map((decision) => decision.reason)
    expect(reasons.slice(reasons.indexOf('resumed')).slice(0, 2)).toEqual(['resumed', 'prefix_hit'])
    const again = driver.add([...preempted.tokens.subarray(0, 20), 5], 1)
    driver.drain()
    expect(again.numCachedTokens).toBe(20)
  })

  it('bounds the rows of scored prompts', () => {
    const driver = new Driver({ maxRows: 8, maxNumSeqs: 8 })
    driver.add(20, 0, { kind: 'forward' })
    driver.add(6, 0, { kind: 'score' })
    const text = driver.add(5, 1)
    let steps = 0
    while (driver.inFlight.length > 0 || driver.scheduler.numUnfinished > 0) {
      const plan = driver.plan()
      if (plan !== undefined) expect(plan.numRows).toBeLessThanOrEqual(8)
      driver.settle()
      expect(++steps).toBeLessThan(50)
    }
    expect(text.numConfirmed).toBe(6)
    expect(driver.log.join(' ')).toContain('1:0+')
    expect(driver.log.join(' ')).not.toContain('1:5+1')
  })

  it('preempts the newest when blocks run out, and resumes it with all its tokens', () => {
    const driver = new Driver({ numBlocks: 8, prefixCache: false, policy: eager })
    const sequences = [driver.add(8, 20), driver.add(8, 20)]
    driver.drain()
    expect(driver.scheduler.stats().preemptions).toBeGreaterThan(0)
    expect(sequences[0].numPreemptions).toBe(0)
    expect(sequences[1].numPreemptions).toBeGreaterThan(0)
    for (const sequence of sequences) {
      const output = [...sequence.tokens.subarray(8, 28)]
      expect(output).toEqual(Array.from({ length: 20 }, (_, i) => 7 * sequence.id + 8 + i))
    }
    expect(sequences[1].decisions.map((decision) => decision.reason)).toEqual(
      expect.arrayContaining(['queued', 'admitted', 'prefill', 'decode', 'preempted', 'resumed']),
    )
  })

  it('preempts a lower priority first', () => {
    const driver = new Driver({ numBlocks: 8, prefixCache: false, policy: eager })
    const low = driver.add(8, 20, { priority: -1 })
    const high = driver.add(8, 20)
    driver.drain()
    expect(low.numPreemptions).toBeGreaterThan(0)
    expect(high.numPreemptions).toBe(0)
  })

  it('says why a request waits', () => {
    const driver = new Driver({ numBlocks: 8 })
    const first = driver.add(20, 4)
    const second = driver.add(20, 4)
    driver.plan()
    expect(first.decisions.map((decision) => decision.reason)).toEqual([
      'queued',
      'admitted',
      'prefill',
    ])
    expect(second.decisions.at(-1)?.reason).toBe('wait_blocks')
    expect(driver.scheduler.queuePosition(second)).toBe(0)
    expect(driver.scheduler.queuePosition(first)).toBe(-1)
    driver.drain()
  })

  it('holds back a prompt that fits now but not when the others have grown', () => {
    const driver = new Driver({ numBlocks: 32 })
    driver.add(16, 100)
    driver.plan()
    const second = driver.add(16, 100)
    driver.plan()
    expect(second.decisions.at(-1)?.reason).toBe('wait_projected_peak')
    driver.drain()
  })
})
