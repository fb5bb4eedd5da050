/** The parts of the cost model: tables, shapes, shares, tune files, depth. */

import { describe, expect, it } from 'vitest'
import { type Hardware, parseHardware, performanceOf } from '../../lib/planner/hardware.ts'
import { groupedMatmulBytes, matmulBytes, matmulSeconds } from '../../lib/planner/matmul-cost.ts'
import { collectiveSeconds } from '../../lib/planner/network-cost.ts'
import { overlappedSeconds } from '../../lib/planner/overlap-cost.ts'
import { hardwareNames, hardwareOfDevice, hardwarePreset } from '../../lib/planner/presets.ts'
import { partBounds, type Schedule, SERIAL } from '../../lib/planner/schedule.ts'
import { chooseSchedule, MIN_GAIN, predictStep, scheduled } from '../../lib/planner/search.ts'
import { attentionWork, mixedShape } from '../../lib/planner/step-shape.ts'
import { codeOf } from '../support/errors.ts'
import { createRandom } from '../support/random.ts'
import { presetProgram } from './programs.ts'

const h100 = hardwarePreset('h100')

describe('hardware', () => {
  it.each(hardwareNames())('%s is a valid tune file with sources', (name) => {
    const preset = hardwarePreset(name)
    expect(parseHardware(JSON.stringify(preset), 'x.json')).toEqual(preset)
    expect(preset.sources.length).toBeGreaterThan(0)
  })

  it('refuses tune files that lack something', () => {
    const broken: [string, (hardware: Record<string, unknown>) => void][] = [
      ['units', (one) => (one.units = 0)],
      ['tiles', (one) => (one.tiles = [])],
      ['matmulFlopPerSecond', (one) => (one.matmulFlopPerSecond = { half: 1 })],
      ['interconnect', (one) => (one.interconnect = { latencySeconds: -1 })],
      ['interference', (one) => (one.interference = { memory: [[0, 0]], network: [] })],
      ['lanesOverlap', (one) => (one.lanesOverlap = 1)],
      ['sources', (one) => delete one.sources],
    ]
    for (const [, spoil] of broken) {
      const hardware = structuredClone(h100) as unknown as Record<string, unknown>
      spoil(hardware)
      expect(codeOf(() => parseHardware(JSON.stringify(hardware), 'x.json'))).toBe('ERR_USAGE')
    }
    for (const text of ['', '[]', 'null', '{']) {
      expect(codeOf(() => parseHardware(text, 'x.json'))).toBe('ERR_USAGE')
    }
  })

  it('is found by what a driver calls the device', () => {
    expect(hardwareOfDevice('NVIDIA H100 80GB HBM3')?.name).toBe('h100')
    expect(hardwareOfDevice('NVIDIA A100-PCIE-80GB')?.name).toBe('a100-pcie')
    expect(hardwareOfDevice('NVIDIA H200')?.name).toBe('h200')
    expect(hardwareOfDevice('NVIDIA T4')).toBeUndefined()
  })

  it('interpolates shares', () => {
    const { network } = hardwarePreset('a100').interference
    expect(performanceOf(network, 0)).toBe(0)
    expect(performanceOf(network, 0.2)).toBeCloseTo(0.5, 12)
    expect(performanceOf(network, 0.15)).toBeCloseTo(0.4, 12)
    expect(performanceOf(network, 1)).toBe(1)
  })
})

describe('matmul', () => {
  const shape = { rows: 1, cols: 8192, depth: 8192, elementBytes: 2, weightBytes: 2 }

  it('of one row takes what its bytes take', () => {
    const floor = matmulBytes(shape) / h100.memoryBytesPerSecond
    expect(matmulSeconds(h100, shape)).toBeCloseTo(floor, 9)
  })

  it('never exceeds the device’s rate, and never gets faster by more rows', () => {
    let last = 0
    for (const rows of [1, 7, 128, 129, 512, 1024, 4096, 8192]) {
      const seconds = matmulSeconds(h100, { ...shape, rows })
      expect((2 * rows * 8192 * 8192) / seconds).toBeLessThanOrEqual(h100.matmulFlopPerSecond.half)
      expect(seconds).toBeGreaterThanOrEqual(last - 1e-12)
      last = seconds
    }
  })

  it('takes longer on fewer units', () => {
    const many = { ...shape, rows: 4096 }
    expect(matmulSeconds(h100, many, 66)).toBeGreaterThan(1.8 * matmulSeconds(h100, many))
  })

  it('of experts reads the chosen ones alone', () => {
    const grouped = { ...shape, experts: 64, choices: 2, rows: 2, cols: 1024 }
    // One token, two of 64 experts.
    const weights = 2 * 1024 * 8192 * 2
    expect(groupedMatmulBytes(grouped)).toBeGreaterThan(0.99 * weights)
    expect(groupedMatmulBytes(grouped)).toBeLessThan(1.01 * weights)
  })
})

it('a collective between one rank is free, and more ranks or bytes cost more', () => {
  expect(collectiveSeconds(h100, 'all_reduce', 1e6, 1)).toBe(0)
  const seconds = (bytes: number, ranks: number) =>
    collectiveSeconds(hardwarePreset('a100'), 'all_reduce', bytes, ranks)
  expect(seconds(1e7, 4)).toBeGreaterThan(seconds(1e6, 4))
  expect(seconds(1e7, 8)).toBeGreaterThan(seconds(1e7, 2))
})

describe('a matmul that overlaps with its sum', () => {
  const matmul = { rows: 8192, cols: 8192, depth: 3584, elementBytes: 2, weightBytes: 2 }
  const overlap = {
    matmul,
    groups: 4,
    collective: 'reduce_scatter',
    rowBytes: 2 * 8192,
    ranks: 8,
    networkShare: 16 / 132,
  } as const
  const moving = collectiveSeconds(h100, 'reduce_scatter', 8192 * overlap.rowBytes, 8)
  const multiplying = matmulSeconds(h100, matmul)

  it('takes less than both in turn, and no less than the longer', () => {
    const seconds = overlappedSeconds(h100, overlap, h100.units)
    expect(seconds).toBeLessThan(moving + multiplying)
    expect(seconds).toBeGreaterThan(Math.max(moving, multiplying))
  })

  it('in one group is both in turn, and waits for a collective on few multiprocessors', () => {
    const speed = performanceOf(h100.interference.network, overlap.networkShare)
    const inTurn = multiplying + moving / speed + 2 * h100.launchSeconds
    const one = { ...overlap, groups: 1 }
    expect(overlappedSeconds(h100, one, h100.units)).toBeCloseTo(inTurn, 12)
    const gather = { ...one, collective: 'all_gather' } as const
    expect(overlappedSeconds(h100, gather, h100.units)).toBeGreaterThan(multiplying)
  })
})

it('attention work of parts adds up to that of the step, windows included', () => {
  const random = createRandom(3)
  for (let run = 0; run < 200; run++) {
    const numSeqs = random.int(1, 6)
    const counts = Array.from({ length: numSeqs }, () => random.int(1, 40))
    const lengths = counts.map((count) => count + random.int(0, 50))
    const numTokens = counts.reduce((sum, count) => sum + count, 0)
    const shape = { numSeqs, counts, lengths, numTokens, numRows: numSeqs }
    const window = random.int(1, 60)
    // Counted one by one.
    let pairs = 0
    let decodes = 0
    counts.forEach((count, i) => {
      for (let row = 0; row < count; row++) {
        const keys = Math.min(window, lengths[i]! - count + row + 1)
        if (count === 1) decodes += keys
        else pairs += keys
      }
    })
    const cut = random.int(0, numTokens)
    const [a, b] = [
      attentionWork(shape, 0, cut, window),
      attentionWork(shape, cut, numTokens, window),
    ]
    expect(a.prefillPairs + b.prefillPairs).toBe(pairs)
    expect(a.decodeKeys + b.decodeKeys).toBe(decodes)
  }
})

it('part bounds ascend, cover the step, and lie on tiles where there are enough rows', () => {
  const schedule: Schedule = { ...SERIAL, parts: 3, splits: [0.3, 0.7, 1] }
  for (const numTokens of [0, 1, 2, 100, 383, 384, 1000, 8191]) {
    const bounds = partBounds(schedule, numTokens)
    expect(bounds).toHaveLength(4)
    expect([bounds[0], bounds[3]]).toEqual([0, numTokens])
    for (let i = 1; i < 4; i++) expect(bounds[i]!).toBeGreaterThanOrEqual(bounds[i - 1]!)
    if (numTokens >= 384) for (const bound of bounds.slice(1, 3)) expect(bound % 128).toBe(0)
  }
})

describe('chooseSchedule', () => {
  const program = presetProgram('llama-3-70b', 8)
  const shape = mixedShape({ numTokens: 2048, numDecodes: 0, context: 0, promptLength: 2048 })

  it('keeps the promise it makes', () => {
    const { best, gain, serialSeconds, schedule } = chooseSchedule(h100, program, shape)
    expect(gain).toBeGreaterThan(MIN_GAIN)
    expect(schedule).toBe(best!.schedule)
    expect(predictStep(h100, scheduled(program, schedule), shape)).toBe(best!.seconds)
    expect(serialSeconds / best!.seconds - 1).toBeCloseTo(gain, 12)
  })

  it('knows where sums inside matmuls pay: long prompts and slow links, not short ones', () => {
    const l40s = hardwarePreset('l40s')
    const overlap = { form: 'reduce_scatter', groups: 4 } as const
    const shares = { network: 16 / l40s.units, memory: 0.4 }
    const fused = scheduled(program, { ...SERIAL, shares, overlap })
    const gainOf = (numTokens: number) => {
      const prompt = mixedShape({ numTokens, numDecodes: 0, context: 0, promptLength: numTokens })
      const serial = predictStep(l40s, scheduled(program, SERIAL), prompt)
      return serial / predictStep(l40s, fused, prompt) - 1
    }
    expect(gainOf(8192)).toBeGreaterThan(0.1)
    expect(gainOf(512)).toBeLessThan(0)
    const { best } = chooseSchedule(l40s, program, shape)
    expect(best!.seconds).toBeLessThanOrEqual(predictStep(l40s, fused, shape))
  })

  it('refuses what gains nothing: a network that costs nothing, one tile, lanes in turn', () => {
    const free: Hardware = {
      ...h100,
      interconnect: { kind: 'nvlink', latencySeconds: 0, busBytesPerSecond: 1e18 },
    }
    expect(chooseSchedule(free, program, shape).refusal).toMatch(/under 3 %/)
    const few = mixedShape({ numTokens: 200, numDecodes: 200, context: 100, promptLength: 1 })
    expect(chooseSchedule(h100, program, few).refusal).toMatch(/tiles/)
    expect(chooseSchedule(hardwarePreset('cpu'), program, shape).refusal).toMatch(/in turn/)
  })

  it('two depths give the time of any depth', () => {
    const other = { ...program, numLayers: 2 * program.period }
    const seconds = predictStep(h100, scheduled(other, SERIAL), shape)
    const more = { ...program, numLayers: 3 * program.period }
    const threePeriods = predictStep(h100, scheduled(more, SERIAL), shape)
    const one = predictStep(
      h100,
      scheduled({ ...program, numLayers: program.period }, SERIAL),
      shape,
    )
    expect(threePeriods - seconds).toBeCloseTo(seconds - one, 12)
  })
})
