/** Rotary settings in every spelling, frequencies against the reference, and refusals. */

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { Family } from '../lib/models/families/common.ts'
import { llama } from '../lib/models/families/llama.ts'
import { phi3 } from '../lib/models/families/phi3.ts'
import { compileModel } from '../lib/models/index.ts'
import { ropeFrequencies } from '../lib/models/rope.ts'
import type { JsonObject } from '../lib/weights/json.ts'
import { codeOf } from './support/errors.ts'
import { LIMITS, withConfig } from './support/golden-config.ts'

describe('rope', () => {
  const { cases } = JSON.parse(
    readFileSync(new URL('fixtures/rope.json', import.meta.url), 'utf8'),
  ) as {
    cases: readonly {
      name: string
      family: 'llama' | 'phi3'
      config: JsonObject
      invFreq: readonly number[]
      attentionFactor: number
      maxModelLen?: number
      seqLen?: number
    }[]
  }
  const families: Record<string, Family> = { llama, phi3 }
  const noTensors = { files: [], tensors: new Map() }

  for (const testCase of cases) {
    it(`${testCase.name}: frequencies of the reference`, () => {
      const config = { rms_norm_eps: 1e-5, ...testCase.config }
      const { spec, maxPositions } = families[testCase.family]!.describe(config, noTensors)
      const rope = spec.ropes[0]!
      const { invFreq, attentionFactor, dynamic } = ropeFrequencies(
        rope,
        testCase.maxModelLen ?? maxPositions,
      )
      expect(attentionFactor).toBeCloseTo(testCase.attentionFactor, 6)
      // Beyond the original length the op computes what a step of that length needs.
      const frequencies =
        dynamic && testCase.seqLen
          ? dynamicFrequencies(dynamic, rope.rotaryDim, testCase.seqLen)
          : invFreq
      expect(frequencies).toHaveLength(testCase.invFreq.length)
      frequencies.forEach((frequency, index) => {
        expect(Math.abs(frequency / testCase.invFreq[index]! - 1)).toBeLessThan(5e-7)
      })
    })
  }

  /** The formula of docs/ops.md with the attributes the op is given. */
  function dynamicFrequencies(
    { factor, base, original }: { factor: number; base: number; original: number },
    rotary: number,
    length: number,
  ): number[] {
    const grown = base * ((factor * length) / original - (factor - 1)) ** (rotary / (rotary - 2))
    return Array.from({ length: rotary / 2 }, (_, i) => 1 / grown ** ((2 * i) / rotary))
  }

  const refused: Record<string, [Record<string, unknown>, string]> = {
    'an unknown type': [{ rope_type: 'spiral' }, 'ERR_UNSUPPORTED_MODEL'],
    'an unknown setting': [{ rope_type: 'default', mrope_section: [1] }, 'ERR_UNSUPPORTED_MODEL'],
    'settings per layer type': [{ full_attention: {} }, 'ERR_UNSUPPORTED_MODEL'],
    'part of each head': [{ partial_rotary_factor: 0.5 }, 'ERR_UNSUPPORTED_MODEL'],
    'no factor': [{ rope_type: 'linear' }, 'ERR_MODEL_CONFIG'],
    'a factor of zero': [{ rope_type: 'linear', factor: 0 }, 'ERR_MODEL_CONFIG'],
    'a factor as text': [{ rope_type: 'linear', factor: '2' }, 'ERR_MODEL_CONFIG'],
    'a shrinking dynamic factor': [{ rope_type: 'dynamic', factor: 0.5 }, 'ERR_MODEL_CONFIG'],
    'a theta of zero': [{ rope_theta: 0 }, 'ERR_MODEL_CONFIG'],
    'factors the wrong way round': [
      { rope_type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 1 },
      'ERR_MODEL_CONFIG',
    ],
    'betas the wrong way round': [
      { rope_type: 'yarn', factor: 8, beta_fast: 1, beta_slow: 32 },
      'ERR_MODEL_CONFIG',
    ],
    'longrope factors of another length': [
      { rope_type: 'longrope', short_factor: [1], long_factor: [1] },
      'ERR_MODEL_CONFIG',
    ],
  }
  for (const [name, [scaling, code]] of Object.entries(refused)) {
    it(`refuses ${name}`, () => {
      expect(codeOf(() => withConfig('llama', { rope_scaling: scaling }, () => 0))).toBe(code)
    })
  }

  it('longrope takes its short factors up to the original length, its long ones beyond', () => {
    const short = Array(4).fill(1)
    const long = Array(4).fill(4)
    const config = {
      original_max_position_embeddings: 64,
      rope_scaling: { type: 'longrope', short_factor: short, long_factor: long },
    }
    withConfig('phi3-fused-qkv', config, (model) => {
      const frequencies = (maxModelLen?: number) =>
        compileModel(model, {
          tensorParallel: 1,
          parts: 1,
          precision: 'auto',
          limits: LIMITS,
          ...(maxModelLen !== undefined && { maxModelLen }),
        }).program.ops[0]!.attrs.inv_freq as readonly number[]
      expect(frequencies(64)[0]).toBe(1)
      expect(frequencies(65)[0]).toBe(0.25)
      expect(frequencies()[0]).toBe(0.25)
    })
  })
})
