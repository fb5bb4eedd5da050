/** Scheduling as a user of the engine sees it: policies, programs, pins, salts, the event log. */

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { Engine } from '../lib/engine/engine.ts'
import { readEventLog, replayEventLog } from '../lib/engine/event-log.ts'
import { BUDGETS, ORDERS } from '../lib/scheduler/policies/index.ts'
import { fakeContinuation } from './support/fake-binding.ts'
import { codeOf, FOLDER, kvBytes, open, prompt, turns, VOCAB } from './support/fake-engine.ts'

const folder = mkdtempSync(join(tmpdir(), 'nanoweave-events-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('policies', () => {
  it.each(ORDERS.flatMap((order) => BUDGETS.map((budget) => [order.name, budget.name] as const)))(
    '%s with %s gives every request its own tokens',
    async (schedulerPolicy, stepBudget) => {
      const { engine } = await open({
        schedulerPolicy,
        stepBudget,
        tpotTargetMs: 5,
        maxNumSeqs: 4,
        maxNumBatchedTokens: 32,
        kvCacheBytes: kvBytes(24),
      })
      const prompts = Array.from({ length: 12 }, (_, i) => prompt(5 + 3 * i, i))
      const results = await Promise.all(
        prompts.map((tokens, i) =>
          engine.complete({ tokens, maxTokens: 12, priority: i % 3, program: `p${i % 2}` }),
        ),
      )
      results.forEach((result, i) => {
        expect(result.tokens).toEqual(fakeContinuation(prompts[i], 12, VOCAB))
      })
      expect(engine.stats().kvBlocks.used).toBe(0)
    },
  )

  it('a high priority overtakes what waits', async () => {
    const { engine } = await open({ schedulerPolicy: 'priority', maxNumSeqs: 1 })
    const done: number[] = []
    const run = (priority: number) =>
      engine.complete({ tokens: prompt(6), maxTokens: 3, priority }).then(() => done.push(priority))
    await Promise.all([run(0), run(1), run(5), run(3)])
    expect(done.slice(-3)).toEqual(done.slice(-3).sort((a, b) => b - a))
  })

  it('are refused by name, and so are values out of range', async () => {
    for (const options of [
      { schedulerPolicy: 'random' },
      { stepBudget: 'none' },
      { admission: 'all' },
      { preemption: 'never' },
      { tpotTargetMs: 0 },
      { starvationMs: -1 },
      { hostKvBytes: -1 },
      { eventLog: '' },
    ])
      expect(await codeOf(open(options)), JSON.stringify(options)).toBe('ERR_USAGE')
    const { engine } = await open()
    for (const request of [
      { program: 'x'.repeat(2000) },
      { tpotTargetMs: 0 },
      { pinTtlMs: -1 },
      { pinTtlMs: 1e9 },
      { priority: Number.NaN },
      { cacheSalt: 'x'.repeat(2000) },
    ])
      expect(await codeOf(engine.complete({ tokens: [11], ...request }))).toBe('ERR_USAGE')
  })
})

describe('the prefix cache', () => {
  it('is shared under equal salts only', async () => {
    const { engine } = await open()
    const tokens = prompt(40)
    const cached = async (cacheSalt?: string) => {
      const result = await engine.complete({
        tokens,
        maxTokens: 2,
        ...(cacheSalt !== undefined && { cacheSalt }),
      })
      return result.usage.cachedTokens
    }
    expect([await cached(), await cached('a'), await cached('b')]).toEqual([0, 0, 0])
    expect([await cached(), await cached('a'), await cached('b')]).toEqual([32, 32, 32])
  })

  it('keeps a conversation whose tool is being called', async () => {
    const { engine } = await open({ kvCacheBytes: kvBytes(40) })
    const first = await engine.complete({ tokens: prompt(60), maxTokens: 10, pinTtlMs: 60_000 })
    expect(engine.stats().kvBlocks).toMatchObject({ used: 4, pinned: 4 })
    expect(engine.explain(first.id)?.decisions.at(-1)?.reason).toBe('pinned')
    for (let i = 0; i < 6; i++) await engine.complete({ tokens: prompt(200, 10 + i), maxTokens: 2 })
    const next = await engine.complete({
      tokens: [...prompt(60), ...first.tokens, ...prompt(5, 3)],
      maxTokens: 2,
    })
    expect(next.usage.cachedTokens).toBe(64)
  })

  it('keeps one that turns out to call a tool while it runs, or no more', async () => {
    const { engine } = await open({ kvCacheBytes: kvBytes(40) })
    let id = -1
    const onQueued = (queued: number) => {
      id = queued
    }
    const request = { tokens: prompt(60), maxTokens: 10, pinTtlMs: 0, onQueued }
    for (const [at, ttlMs, pinned] of [
      [3, 60_000, 4],
      [4, 0, 0],
    ]) {
      let numTokens = 0
      for await (const { tokens } of engine.generate({ ...request, cacheSalt: `${at}` })) {
        numTokens += tokens.length
        if (numTokens >= at) expect(engine.pin(id, ttlMs) || numTokens === 10).toBe(true)
      }
      const before = at === 3 ? 0 : 4
      expect(engine.stats().kvBlocks.pinned).toBe(before + pinned)
    }
    expect(engine.pin(id, 1000)).toBe(false)
    const streams = engine.generateMany({ ...request, n: 1, maxTokens: 100 })
    await streams[0].next()
    for (const wrong of [-1, 1e9, Number.NaN])
      expect(() => engine.pin(id, wrong)).toThrow('pinTtlMs')
    await streams[0].return()
  })
})

describe('the event log', () => {
  it('of an engine under pressure replays to the same plans', async () => {
    const eventLog = join(folder, 'cpu.jsonl')
    {
      await using engine = await Engine.load(FOLDER, {
        device: 'cpu',
        eventLog,
        schedulerPolicy: 'least-attained',
        stepBudget: 'milliseconds',
        tpotTargetMs: 20,
        admission: 'prompt-fits',
        preemption: 'auto',
        kvCacheBytes: kvBytes(24),
        hostKvBytes: kvBytes(40),
        maxNumSeqs: 8,
      })
      const stop = new AbortController()
      const runs = Array.from({ length: 16 }, (_, i) =>
        engine
          .complete({
            tokens: prompt(10 + 5 * (i % 5), i % 4),
            maxTokens: 50,
            ignoreEos: true,
            temperature: 1,
            seed: i,
            program: `program ${i % 3}`,
            pinTtlMs: i % 2 === 0 ? 50 : 0,
            ...(i === 9 && { signal: stop.signal }),
          })
          .catch(() => undefined),
      )
      await turns(5)
      stop.abort()
      await Promise.all(runs)
      expect(engine.stats().preemptions).toBeGreaterThan(0)
    }
    const events = await readEventLog(eventLog)
    const replay = await replayEventLog(eventLog)
    expect(replay.firstDifference).toBe(-1)
    expect(replay.numSteps).toBeGreaterThan(50)
    expect(events.filter((event) => event.type === 'add')).toHaveLength(16)
  })

  it('ends at its size, says so, and replays as far as it goes', async () => {
    const path = join(folder, 'small.jsonl')
    const { engine } = await open({ eventLog: path, eventLogBytes: 20_000 })
    for (let i = 0; i < 12; i++) {
      const onQueued = (id: number) => engine.pin(id, 20)
      await engine.complete({ tokens: prompt(30, i), maxTokens: 20, onQueued })
    }
    await engine.close()
    const { size } = statSync(path)
    expect(size).toBeGreaterThan(15_000)
    expect(size).toBeLessThan(20_200)
    const events = await readEventLog(path)
    expect(events.at(-1)).toMatchObject({ type: 'cut' })
    expect(events.some(({ type }) => type === 'pin')).toBe(true)
    const replay = await replayEventLog(path)
    expect(replay).toMatchObject({ firstDifference: -1, cut: expect.stringContaining('20000') })
    expect(replay.numSteps).toBeGreaterThan(50)
    expect(await codeOf(open({ eventLog: path, eventLogBytes: 0 }))).toBe('ERR_USAGE')
  })

  it('of another version is no log', async () => {
    const path = join(folder, 'version.jsonl')
    const { engine } = await open({ eventLog: path })
    await engine.close()
    const text = readFileSync(path, 'utf8')
    expect((await replayEventLog(path)).cut).toBeUndefined()
    writeFileSync(path, text.replace('"version":2', '"version":1'))
    expect(await codeOf(replayEventLog(path))).toBe('ERR_USAGE')
  })

  it('is refused where it cannot be written, and is no log when it is something else', async () => {
    expect(await codeOf(open({ eventLog: join(folder, 'no', 'such', 'folder') }))).toBe('ERR_IO')
    const { engine } = await open({ eventLog: join(folder, 'fake.jsonl') })
    await engine.complete({ tokens: [11], maxTokens: 2 })
    await engine.close()
    expect(readFileSync(join(folder, 'fake.jsonl'), 'utf8').split('\n')[0]).toContain('"config"')
    writeFileSync(join(folder, 'broken.jsonl'), '{"type":')
    expect(await codeOf(readEventLog(join(folder, 'broken.jsonl')))).toBe('ERR_USAGE')
    await expect(readEventLog(join(folder, 'absent.jsonl'))).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringContaining('does not exist'),
    })
  })
})
