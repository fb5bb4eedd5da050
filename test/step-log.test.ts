/** What an engine tells of its steps: tokens by kind, nano-batches, times, and collective payload. */

import { describe, expect, it } from 'vitest'
import { collectivePayload } from '../lib/program/collectives.ts'
import { splitNanoBatches } from '../lib/program/passes/nano-batch.ts'
import { collect, open, prompt } from './support/fake-engine.ts'
import { serialProgram } from './support/programs.ts'

describe('recentSteps', () => {
  it('tells tokens by kind and nano-batch', async () => {
    const { engine } = await open({ nanoBatches: 2 })
    await collect(engine.generate({ tokens: prompt(37), maxTokens: 5, ignoreEos: true }))
    const steps = engine.recentSteps()
    const [first, ...decodes] = steps
    expect([first.prefillTokens, first.decodeTokens]).toEqual([37, 0])
    expect(first.nanoBatches).toEqual([19, 18])
    expect(decodes.length).toBeGreaterThanOrEqual(4)
    for (const step of decodes) {
      expect([step.prefillTokens, step.decodeTokens, step.sequences]).toEqual([0, 1, 1])
      expect(step.nanoBatches).toEqual([1, 0])
    }
    for (const step of steps) expect(step.endedMs).toBeGreaterThanOrEqual(step.submittedMs)
    expect(engine.stats().stepRunMs).toBeCloseTo(
      steps.reduce((sum, step) => sum + step.runMs, 0),
      6,
    )
  })

  it('keeps the last 128, in order', async () => {
    const { engine } = await open()
    await collect(engine.generate({ tokens: prompt(4), maxTokens: 300, ignoreEos: true }))
    const ids = engine.recentSteps().map(({ id }) => id)
    expect(ids).toHaveLength(128)
    expect(ids).toEqual(Array.from({ length: 128 }, (_, at) => ids[0] + at))
    expect(ids[127]).toBe(engine.stats().steps - 1)
  })
})

describe('collectivePayload', () => {
  it('adds up the results of collectives', () => {
    expect(collectivePayload(serialProgram())).toEqual({ bytesPerToken: 0, bytesPerRow: 0 })
    const program = serialProgram({ tp: 2, layers: 3 })
    // The embedding's rows, and two sums in each layer: 64 float32 each. Logits: 100, padded to 128.
    const payload = collectivePayload(program)
    expect(payload).toEqual({ bytesPerToken: (1 + 2 * 3) * 64 * 4, bytesPerRow: 128 * 4 })
  })

  it('is the same however the program is split', () => {
    const program = serialProgram({ tp: 2 })
    const split = splitNanoBatches(program, 3)
    expect(split.parts).toBe(3)
    const { bytesPerToken, bytesPerRow } = collectivePayload(split)
    const whole = collectivePayload(program)
    expect(bytesPerToken).toBeCloseTo(whole.bytesPerToken, 6)
    expect(bytesPerRow).toBe(whole.bytesPerRow)
  })
})
