/** The simulator: conservation, determinism, what must get better or worse, layouts, and its page. */

import { describe, expect, it } from 'vitest'
import { layoutFootprint } from '../lib/planner/footprint.ts'
import { hardwarePreset } from '../lib/planner/presets.ts'
import { searchLayouts } from '../lib/simulator/layouts.ts'
import { percentilesOf } from '../lib/simulator/metrics.ts'
import { renderSimulation } from '../lib/simulator/page.ts'
import { type SimulationOptions, simulate } from '../lib/simulator/simulate.ts'
import { findLengthTrace, generateWorkload } from '../lib/workload/index.ts'
import { presetProgram } from './planner/programs.ts'
import { openInChromium } from './support/chromium.ts'
import { codeOf } from './support/errors.ts'

const l40s = hardwarePreset('l40s')
const program = presetProgram('llama-3-8b', 1)

function load(rate: number, numRequests = 200) {
  return generateWorkload({
    trace: findLengthTrace('sharegpt'),
    arrivals: 'poisson',
    rate,
    numRequests,
    durationMs: undefined,
    seed: 5,
    maxPromptTokens: 4000,
    maxOutputTokens: 4000,
  })
}

function options(rate: number, changes: Partial<SimulationOptions> = {}): SimulationOptions {
  return {
    hardware: l40s,
    deployment: { program, instances: 1, prefillInstances: 0 },
    requests: load(rate),
    targets: { ttftMs: 500, tpotMs: 40 },
    maxNumSeqs: 128,
    maxNumBatchedTokens: 2048,
    overlap: false,
    ...changes,
  }
}

describe('simulate', () => {
  it('finishes every request once and gives the same result again', () => {
    const first = simulate(options(4))
    expect(first.metrics.requests).toBe(200)
    expect(first.busyShare).toBeGreaterThan(0)
    expect(first.busyShare).toBeLessThanOrEqual(1)
    expect(simulate(options(4))).toEqual(first)
  })

  it('one token at batch 1 takes the weights’ bytes over the bandwidth', () => {
    const { weightBytes } = layoutFootprint(l40s, program)
    const requests = [{ arrivalMs: 0, promptTokens: 16, outputTokens: 64 }]
    const { metrics } = simulate(options(1, { requests }))
    const floorMs = (1e3 * weightBytes) / l40s.memoryBytesPerSecond
    // The embedding table is among the weights and not read; kernels have gaps.
    expect(metrics.tpotMs.p50 / floorMs).toBeGreaterThan(0.9)
    expect(metrics.tpotMs.p50 / floorMs).toBeLessThan(1.2)
  })

  it('load costs latency and brings throughput, up to the bound', () => {
    const [light, heavy] = [simulate(options(0.5)), simulate(options(50))]
    expect(heavy.metrics.ttftMs.p99).toBeGreaterThan(light.metrics.ttftMs.p99)
    expect(heavy.metrics.tpotMs.p50).toBeGreaterThan(light.metrics.tpotMs.p50)
    expect(heavy.metrics.tokensPerSecondPerDevice).toBeGreaterThan(
      light.metrics.tokensPerSecondPerDevice,
    )
    expect(heavy.metrics.ofOptimal).toBeLessThan(1)
    expect(light.metrics.goodShare).toBeGreaterThan(heavy.metrics.goodShare)
  })

  it('two replicas share the load', () => {
    const one = simulate(options(8))
    const two = simulate(options(8, { deployment: { program, instances: 2, prefillInstances: 0 } }))
    expect(two.devices).toBe(2)
    expect(two.metrics.tpotMs.p90).toBeLessThan(one.metrics.tpotMs.p90)
  })

  it('decoding apart is never held up by a prompt', () => {
    // Long prompts, whole ones in a step.
    const trace = findLengthTrace('azure-conversation')
    const requests = generateWorkload({ ...generatorOf(3), trace })
    const together = simulate(
      options(3, { requests, deployment: { program, instances: 2, prefillInstances: 0 } }),
    )
    const apart = simulate(
      options(3, { requests, deployment: { program, instances: 1, prefillInstances: 1 } }),
    )
    expect(apart.metrics.requests).toBe(requests.length)
    expect(apart.metrics.tpotMs.p99).toBeLessThan(together.metrics.tpotMs.p99)
  })

  it('refuses a model that does not fit', () => {
    const big = presetProgram('llama-3-70b', 1)
    const deployment = { program: big, instances: 1, prefillInstances: 0 }
    expect(codeOf(() => simulate(options(1, { deployment })))).toBe('ERR_OUT_OF_MEMORY')
  })
})

function generatorOf(rate: number) {
  return {
    arrivals: 'poisson' as const,
    rate,
    numRequests: 100,
    durationMs: undefined,
    seed: 9,
    maxPromptTokens: 4000,
    maxOutputTokens: 500,
  }
}

describe('searchLayouts', () => {
  it('compares what fits, best first', () => {
    const results = searchLayouts({
      ...options(6, { requests: load(6, 60) }),
      devices: 4,
      hasExperts: false,
      programOf: (tensorParallel) => presetProgram('llama-3-8b', tensorParallel),
    })
    // tp 1: together, 1 + 3, 2 + 2; tp 2: together, 1 + 1; tp 4: together.
    expect(results).toHaveLength(6)
    expect(results.every(({ simulation }) => simulation.devices === 4)).toBe(true)
    const [best, worst] = [results[0]!, results.at(-1)!]
    expect(best.simulation.metrics.goodput).toBeGreaterThanOrEqual(worst.simulation.metrics.goodput)
  })

  it('leaves out what does not fit', () => {
    const results = searchLayouts({
      ...options(1, { requests: load(1, 20), hardware: hardwarePreset('h100') }),
      devices: 8,
      hasExperts: false,
      programOf: (tensorParallel) => presetProgram('llama-3-70b', tensorParallel),
    })
    // 141 GB of weights do not fit on one device, and just on two.
    expect(results.every(({ layout }) => layout.tensorParallel >= 2)).toBe(true)
  })
})

it('percentiles are nearest ranks', () => {
  const values = Array.from({ length: 100 }, (_, i) => 100 - i)
  expect(percentilesOf(values)).toEqual({ p50: 50, p90: 90, p99: 99, mean: 50.5 })
  expect(percentilesOf([7]).p99).toBe(7)
})

describe('the page', () => {
  const points = [1, 4, 16].map((rate) => ({ rate, simulation: simulate(options(rate)) }))
  const page = renderSimulation({
    facts: [['model', 'a <model>']],
    targets: { ttftMs: 500, tpotMs: 40 },
    points,
    layouts: [{ name: 'tp 1 × 1', simulation: points[0]!.simulation }],
  })

  it('loads nothing and escapes names', () => {
    expect(page).toContain('a &lt;model&gt;')
    expect(page).not.toMatch(/<script|<link|\bsrc=|url\(/)
    expect(page).not.toMatch(/NaN|Infinity/)
  })

  it('is readable in Chromium', async (context) => {
    const browser = await openInChromium(page)
    if (browser === undefined) return context.skip('no Chromium here')
    try {
      expect(browser.problems).toEqual([])
      expect(await browser.text('figcaption')).toHaveLength(4)
      const dots = await browser.boxes('figure circle')
      expect(dots).toHaveLength(3 * (3 + 3 + 1 + 2))
      for (const { x } of dots) expect(x).toBeLessThan(1050)
      // Names of curves do not lie on each other.
      const names = await browser.boxes('figure:first-of-type .curve')
      const tops = names.map(({ y }) => y).sort((a, b) => a - b)
      for (let i = 1; i < tops.length; i++) expect(tops[i]! - tops[i - 1]!).toBeGreaterThan(8)
    } finally {
      await browser.close()
    }
  })
})
