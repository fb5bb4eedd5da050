/**
 * Frequencies of rotary embeddings (https://arxiv.org/abs/2104.09864) and their scalings. Rounded to
 * float32 where the reference implementations round, since an angle is position · frequency and a
 * long context magnifies the last bit.
 */

import type { RopeScaling, RopeSpec } from './spec.ts'

/** What the rope_table op takes. */
export interface RopeFrequencies {
  /** [rotaryDim / 2], radians per position. */
  readonly invFreq: readonly number[]
  /** Multiplies cos and sin. */
  readonly attentionFactor: number
  /** Dynamic NTK: from `original` positions on the base grows with the position. */
  readonly dynamic?: { readonly factor: number; readonly base: number; readonly original: number }
}

const f32 = Math.fround

/**
 * `maxModelLen` is the longest context that will be served: longrope has one set of factors for
 * contexts up to its original length and another for longer ones, and a cache must hold keys
 * of one set only.
 */
export function ropeFrequencies(rope: RopeSpec, maxModelLen: number): RopeFrequencies {
  const { theta, scaling } = rope
  const periods = basePeriods(rope)
  const plain = periods.map((period) => f32(1 / period))
  switch (scaling.kind) {
    case 'none':
      return { invFreq: plain, attentionFactor: 1 }
    case 'linear':
      return { invFreq: plain.map((freq) => f32(freq / scaling.factor)), attentionFactor: 1 }
    case 'dynamic':
      return {
        invFreq: plain,
        attentionFactor: 1,
        dynamic: { factor: scaling.factor, base: theta, original: scaling.original },
      }
    case 'llama3':
      return { invFreq: llama3Frequencies(plain, scaling), attentionFactor: 1 }
    case 'yarn':
      return {
        invFreq: yarnFrequencies(periods, rope, scaling),
        attentionFactor: scaling.attentionFactor,
      }
    case 'longrope': {
      const factors = maxModelLen > scaling.original ? scaling.long : scaling.short
      return {
        invFreq: periods.map((period, index) => f32(1 / f32(f32(factors[index]!) * period))),
        attentionFactor: scaling.attentionFactor,
      }
    }
  }
}

/** theta^(2i / rotaryDim), [rotaryDim / 2]. */
function basePeriods({ rotaryDim, theta }: RopeSpec): number[] {
  return Array.from({ length: rotaryDim / 2 }, (_, i) => f32(theta ** f32((2 * i) / rotaryDim)))
}

/** Llama 3.1: low frequencies divided by the factor, high ones kept, a linear blend between. */
function llama3Frequencies(
  plain: readonly number[],
  scaling: Extract<RopeScaling, { kind: 'llama3' }>,
): number[] {
  const { factor, lowFreqFactor, highFreqFactor, original } = scaling
  return plain.map((freq) => {
    const wavelength = f32((2 * Math.PI) / freq)
    if (wavelength > original / lowFreqFactor) return f32(freq / factor)
    if (wavelength < original / highFreqFactor) return freq
    const smooth = f32(
      f32(f32(original / wavelength) - lowFreqFactor) / (highFreqFactor - lowFreqFactor),
    )
    return f32(f32(f32(f32(1 - smooth) * freq) / factor) + f32(smooth * freq))
  })
}

/** YaRN, https://arxiv.org/abs/2309.00071: a ramp over dimensions from kept to interpolated. */
function yarnFrequencies(
  periods: readonly number[],
  { rotaryDim, theta }: RopeSpec,
  scaling: Extract<RopeScaling, { kind: 'yarn' }>,
): number[] {
  const { factor, original, betaFast, betaSlow, truncate } = scaling
  // The dimension whose frequency makes `rotations` turns within the original context.
  const dimensionOf = (rotations: number) =>
    (rotaryDim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  const edge = (rotations: number, round: (value: number) => number) =>
    truncate ? round(dimensionOf(rotations)) : dimensionOf(rotations)
  const low = Math.max(edge(betaFast, Math.floor), 0)
  let high = Math.min(edge(betaSlow, Math.ceil), rotaryDim - 1)
  if (low === high) high += 0.001
  return periods.map((period, index) => {
    const ramp = Math.min(Math.max(f32(f32(index - low) / (high - low)), 0), 1)
    const keep = f32(1 - ramp)
    const interpolated = f32(1 / f32(factor * period))
    return f32(f32(interpolated * f32(1 - keep)) + f32(f32(1 / period) * keep))
  })
}
