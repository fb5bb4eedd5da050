/** Workloads: published statistics come out of the generator, and the same seed gives the same run. */

import { describe, expect, it } from 'vitest'
import {
  ARRIVAL_PROCESSES,
  createRandom,
  findLengthTrace,
  generateWorkload,
  LENGTH_TRACES,
  parseTrace,
  type WorkloadOptions,
  type WorkloadRequest,
} from '../lib/workload/index.ts'
import { codeOf } from './support/errors.ts'

const OPTIONS: WorkloadOptions = {
  trace: findLengthTrace('lmsys'),
  arrivals: 'poisson',
  rate: 10,
  numRequests: 20_000,
  durationMs: undefined,
  seed: 1,
  maxPromptTokens: 1e6,
  maxOutputTokens: 1e6,
}

const generate = (options: Partial<WorkloadOptions> = {}) =>
  generateWorkload({ ...OPTIONS, ...options })

function quantile(values: readonly number[], q: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(q * (values.length - 1))]
}

const distances = (requests: readonly WorkloadRequest[]) =>
  requests.slice(1).map(({ arrivalMs }, at) => arrivalMs - requests[at].arrivalMs)

/** Standard deviation over mean: 1 for Poisson, 1 / sqrt(shape) for Gamma. */
function variation(values: readonly number[]): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length
  return Math.sqrt(variance) / mean
}

describe('lengths', () => {
  it.each(LENGTH_TRACES)('of $name have the published quantiles', (trace) => {
    const requests = generate({ trace })
    for (const field of ['promptTokens', 'outputTokens'] as const) {
      const drawn = requests.map((request) => request[field])
      for (const [q, published] of [
        [0.5, trace[field].p50],
        [0.9, trace[field].p90],
      ])
        expect(Math.abs(quantile(drawn, q) / published - 1)).toBeLessThan(0.08)
      expect(drawn.every((length) => Number.isSafeInteger(length) && length >= 1)).toBe(true)
    }
  })

  it('are cut to what a model takes', () => {
    const requests = generate({ maxPromptTokens: 100, maxOutputTokens: 7 })
    expect(Math.max(...requests.map(({ promptTokens }) => promptTokens))).toBe(100)
    expect(Math.max(...requests.map(({ outputTokens }) => outputTokens))).toBe(7)
  })
})

describe('arrivals', () => {
  it.each(ARRIVAL_PROCESSES)('$name: mean rate, in order, from 0', ({ name }) => {
    const requests = generate({ arrivals: name })
    expect(requests[0].arrivalMs).toBe(0)
    expect(distances(requests).every((distance) => distance >= 0)).toBe(true)
    const rate = (1000 * requests.length) / requests[requests.length - 1].arrivalMs
    expect(Math.abs(rate / 10 - 1)).toBeLessThan(0.06)
  })

  it('vary as their process says', () => {
    const of = (arrivals: WorkloadOptions['arrivals']) =>
      variation(distances(generate({ arrivals })))
    expect(of('constant')).toBeLessThan(1e-6)
    expect(Math.abs(of('poisson') - 1)).toBeLessThan(0.05)
    // Shapes from 0.25 to 0.5: between 1.41 and 2.
    expect(of('gamma')).toBeGreaterThan(1.41)
    expect(of('gamma')).toBeLessThan(2)
  })

  it('change their burstiness every minute', () => {
    const perMinute = new Map<number, number[]>()
    const requests = generate({ arrivals: 'gamma', rate: 200, numRequests: 100_000 })
    for (const [at, distance] of distances(requests).entries()) {
      const minute = Math.floor(requests[at].arrivalMs / 60_000)
      const ofMinute = perMinute.get(minute) ?? []
      ofMinute.push(distance)
      perMinute.set(minute, ofMinute)
    }
    const minutes = [...perMinute.values()].filter(({ length }) => length > 5000).map(variation)
    expect(minutes.length).toBeGreaterThan(4)
    expect(Math.max(...minutes) - Math.min(...minutes)).toBeGreaterThan(0.1)
  })

  it('end with the duration, or the number of requests', () => {
    const requests = generate({ arrivals: 'constant', numRequests: undefined, durationMs: 1000 })
    expect(requests.map(({ arrivalMs }) => arrivalMs)).toEqual([
      0, 100, 200, 300, 400, 500, 600, 700, 800, 900,
    ])
    expect(generate({ numRequests: 3 })).toHaveLength(3)
  })
})

describe('seeds', () => {
  it('give the same run again, and another one otherwise', () => {
    expect(generate()).toEqual(generate())
    expect(generate({ seed: 2 })).not.toEqual(generate())
  })

  it('give the same lengths at every rate', () => {
    const lengths = (rate: number) =>
      generate({ rate }).map(({ promptTokens, outputTokens }) => [promptTokens, outputTokens])
    expect(lengths(1)).toEqual(lengths(100))
  })

  it('give Gamma numbers of mean 1 at any shape', () => {
    const random = createRandom(3)
    for (const shape of [0.25, 0.5, 1, 4.5]) {
      const drawn = Array.from({ length: 40_000 }, () => random.gamma(shape))
      const mean = drawn.reduce((sum, value) => sum + value, 0) / drawn.length
      expect(Math.abs(mean - 1)).toBeLessThan(0.03)
      expect(Math.abs(variation(drawn) * Math.sqrt(shape) - 1)).toBeLessThan(0.04)
    }
  })
})

describe('recorded traces', () => {
  const CSV = `TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.5000000,374,44
2023-11-17 00:00:00.0000000,396,109
2023-11-17 00:00:02.0000000,879,0
`

  it('are read from the Azure CSV', () => {
    expect(parseTrace(CSV)).toEqual([
      { arrivalMs: 0, promptTokens: 374, outputTokens: 44 },
      { arrivalMs: 500, promptTokens: 396, outputTokens: 109 },
      { arrivalMs: 2500, promptTokens: 879, outputTokens: 1 },
    ])
  })

  it('are read from JSON lines, in order of arrival', () => {
    const text =
      '{"arrivalMs": 70, "promptTokens": 3, "outputTokens": 4}\n{"arrivalMs": 20, "promptTokens": 1, "outputTokens": 2}\n'
    expect(parseTrace(text).map(({ arrivalMs }) => arrivalMs)).toEqual([0, 50])
  })

  it('are repeated, and scaled to a rate', () => {
    const trace = parseTrace(CSV)
    const recorded = { trace, arrivals: undefined, numRequests: 5 }
    const times = (options: Partial<WorkloadOptions>) =>
      generate({ ...recorded, ...options }).map(({ arrivalMs }) => arrivalMs)
    expect(times({ rate: undefined })).toEqual([0, 500, 2500, 3750, 4250])
    expect(times({ rate: 8 })).toEqual([0, 50, 250, 375, 425])
  })

  it('need a rate where they have no times', () => {
    const trace = parseTrace('{"promptTokens": 3, "outputTokens": 4}')
    expect(codeOf(() => generate({ trace, arrivals: undefined, rate: undefined }))).toBe(
      'ERR_USAGE',
    )
    expect(generate({ trace, arrivals: undefined, rate: 5, numRequests: 2 })).toHaveLength(2)
  })

  it.each([
    '',
    'a,b\n1,2',
    'TIMESTAMP,ContextTokens,GeneratedTokens\nx,-1,2',
    '{"promptTokens": 1e300, "outputTokens": 1}',
    '{"promptTokens": 1, "outputTokens": 1}\n{',
    '{"promptTokens": 1, "outputTokens": 1, "arrivalMs": 4}\n{"promptTokens": 1, "outputTokens": 1}',
  ])('that cannot be read are refused: %s', (text) => {
    expect(codeOf(() => parseTrace(text))).toBe('ERR_USAGE')
  })
})

it.each([
  { rate: 0 },
  { rate: Number.NaN },
  { rate: undefined },
  { numRequests: 0 },
  { numRequests: undefined },
])('refuses %o', (options) => {
  expect(codeOf(() => generate(options))).toBe('ERR_USAGE')
})
