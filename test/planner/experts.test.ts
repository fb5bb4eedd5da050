/** Costs of the ops of routed experts in programs of models: what tokens read, compute and exchange. */

import { describe, expect, it } from 'vitest'
import { buildLayered, loadModel, modelFootprint, modelPreset } from '../../lib/models/index.ts'
import { programCosts } from '../../lib/planner/op-cost.ts'
import { hardwarePreset } from '../../lib/planner/presets.ts'
import { chooseSchedule } from '../../lib/planner/search.ts'
import { mixedShape } from '../../lib/planner/step-shape.ts'
import { presetProgram } from './programs.ts'

const H100 = hardwarePreset('h100')

/** Bytes and operations of the grouped matmuls of the first layer, one part. */
function firstLayer(name: string, tensorParallel: number, tokens: number) {
  const { short } = presetProgram(name, tensorParallel)
  const shape = mixedShape({ numTokens: tokens, numDecodes: tokens, context: 128, promptLength: 1 })
  const costs = programCosts(H100, short, shape, [0, shape.numTokens])
  const of = (kind: string) =>
    costs.filter((_, i) => {
      const { kind: other, label } = short.ops[i]!
      return other === kind && label.startsWith('layers.0.')
    })
  const sum = (kind: string, key: 'bytes' | 'flops' | 'networkBytes') =>
    of(kind).reduce((total, cost) => total + cost[key], 0)
  return { bytes: sum('grouped_matmul', 'bytes'), flops: sum('grouped_matmul', 'flops'), sum }
}

/** Parameters of one expert of gpt-oss without biases: gate, up and down of 2880 × 2880. */
const EXPERT = 3 * 2880 * 2880

describe('gpt-oss', () => {
  it.each([
    ['gpt-oss-20b', 20.91e9],
    ['gpt-oss-120b', 116.83e9],
  ])('%s has the published number of parameters', (name, published) => {
    const { model } = modelPreset(name)
    const { parameters } = modelFootprint(model, { tensorParallel: 1, precision: 'auto' })
    expect(Math.abs(parameters / published - 1)).toBeLessThan(1e-3)
  })

  it('one token reads and computes its four experts; many tokens read all', () => {
    const one = firstLayer('gpt-oss-20b', 1, 1)
    expect(one.bytes / (4 * EXPERT * 2)).toBeCloseTo(1, 1)
    expect(one.flops).toBeCloseTo(2 * 4 * EXPERT)
    const many = firstLayer('gpt-oss-20b', 1, 512)
    expect(many.flops).toBeCloseTo(512 * one.flops)
    expect(many.bytes).toBeGreaterThan(32 * EXPERT * 2)
    expect(many.bytes).toBeLessThan(1.2 * 32 * EXPERT * 2)
  })

  it('ranks share the width of every expert, and exchange rows', () => {
    const [one, two] = [1, 2].map((ranks) => firstLayer('gpt-oss-20b', ranks, 512))
    expect(two!.flops / one!.flops).toBeCloseTo(0.5)
    expect(one!.sum('moe_combine', 'networkBytes')).toBe(0)
    expect(two!.sum('moe_combine', 'networkBytes')).toBeGreaterThan(512 * 2880 * 2)
  })
})

describe('deepseek-v3', () => {
  it('has the published number of parameters, and 70 KB of cache a token on every rank', () => {
    const { model } = modelPreset('deepseek-v3')
    for (const tensorParallel of [1, 8]) {
      const footprint = modelFootprint(model, { tensorParallel, precision: 'auto' })
      // https://arxiv.org/abs/2412.19437: 671 B in all; 61 layers of 512 + 64 elements.
      expect(Math.abs(footprint.parameters / 671e9 - 1)).toBeLessThan(1e-3)
      expect(footprint.kvBytesPerBlock(1)).toBe(61 * 576 * 2)
    }
  })

  it('decode reads each latent vector once for all heads', () => {
    const { short } = presetProgram('deepseek-v3', 8)
    const shape = mixedShape({ numTokens: 64, numDecodes: 64, context: 8192, promptLength: 1 })
    const costs = programCosts(H100, short, shape, [0, shape.numTokens])
    const { bytes, flops } = costs[short.ops.findIndex(({ kind }) => kind === 'mla_attention')]!
    const keys = 64 * 8192
    expect(bytes / (keys * 576 * 2)).toBeCloseTo(1, 1)
    // 16 heads of a rank: a product with all of the vector, and a sum of its first 512 elements.
    expect(flops / (keys * 16 * 2 * (576 + 512))).toBeCloseTo(1, 1)
  })
})

it.each([1, 2])('a checkpoint with experts can be planned, tp %i', (tensorParallel) => {
  const program = buildLayered(loadModel('models/tiny-moe'), {
    tensorParallel,
    precision: 'auto',
    limits: {
      ...{ maxTokens: 1024, maxRows: 64, maxSeqs: 64, numBlocks: 64, blockSize: 16 },
      ...{ maxBlocksPerSeq: 64, numSlots: 0 },
    },
  })
  const shape = mixedShape({ numTokens: 512, numDecodes: 0, context: 0, promptLength: 512 })
  const { serialSeconds, tried } = chooseSchedule(H100, program, shape)
  expect(serialSeconds).toBeGreaterThan(0)
  expect(tried).toBeGreaterThan(10)
})
