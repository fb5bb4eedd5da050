/**
 * Rotary settings of a config, in every spelling found in the wild: `rope_theta` + `rope_scaling`
 * or one `rope_parameters`, `type` or `rope_type`. Unknown kinds and unknown settings are refused
 * by name. Defaults follow transformers 5.
 */

import { isJsonObject, type JsonObject } from '../weights/json.ts'
import { quote } from '../weights/safetensors.ts'
import {
  configError,
  flag,
  integer,
  number,
  numbers,
  optionalInteger,
  optionalNumber,
  optionalObject,
  optionalString,
  unsupported,
} from './config.ts'
import type { RopeScaling, RopeSpec } from './spec.ts'

const FACTOR = { min: 1e-6, max: 1e6 }
const STRETCH = { min: 1, max: 1e6 }
const MSCALE = { min: 0, max: 1e3 }
const POSITIONS = { min: 2, max: 2 ** 24 }
const KNOWN_SETTINGS: ReadonlySet<string> = new Set([
  'rope_type',
  'type',
  'rope_theta',
  'partial_rotary_factor',
  'factor',
  'original_max_position_embeddings',
  'attention_factor',
  'beta_fast',
  'beta_slow',
  'mscale',
  'mscale_all_dim',
  'truncate',
  'short_factor',
  'long_factor',
  'low_freq_factor',
  'high_freq_factor',
  'finetuned',
])

export interface RopeContext {
  readonly headDim: number
  readonly maxPositions: number
  readonly defaultTheta: number
  /** The family rotates only a part of each head where the config asks for it. */
  readonly partialRotary?: boolean
  /** Other names of scalings in this family: Phi-3 calls longrope `su`. */
  readonly aliases?: Readonly<Record<string, string>>
}

/** The one rotary embedding of a model. */
export function readRope(config: JsonObject, context: RopeContext): RopeSpec {
  return ropeFromSettings(config, ropeSettings(config), context)
}

/** The settings of a model's one rotary embedding, under either name. */
function ropeSettings(config: JsonObject): JsonObject {
  const scaling = optionalObject(config, 'rope_scaling')
  const hasScaling = scaling !== undefined && Object.keys(scaling).length > 0
  return (hasScaling ? scaling : optionalObject(config, 'rope_parameters')) ?? {}
}

/**
 * DeepSeek's YaRN: what attention scores are multiplied with, the square of the attention factor for
 * `mscale_all_dim`, which in other models is part of cosines and sines.
 */
export function yarnScoreFactor(config: JsonObject, { scaling }: RopeSpec): number {
  if (scaling.kind !== 'yarn') return 1
  const mscale = optionalNumber(ropeSettings(config), 'mscale_all_dim', MSCALE) ?? 0
  return attentionFactor(scaling.factor, mscale) ** 2
}

/** A rotary embedding from its settings; what they leave out is looked for in `config`. */
export function ropeFromSettings(
  config: JsonObject,
  settings: JsonObject,
  context: RopeContext,
): RopeSpec {
  for (const [key, value] of Object.entries(settings)) {
    if (!KNOWN_SETTINGS.has(key) || isJsonObject(value)) {
      throw unsupported(`rope setting ${quote(key)} is not supported`)
    }
  }
  const thetaRange = { min: 2, max: 1e12 }
  const theta =
    optionalNumber(settings, 'rope_theta', thetaRange) ??
    number(config, 'rope_theta', thetaRange, context.defaultTheta)
  const share = { min: 0, max: 1 }
  const partial =
    optionalNumber(settings, 'partial_rotary_factor', share) ??
    number(config, 'partial_rotary_factor', share, 1)
  if (partial !== 1 && !context.partialRotary) {
    throw unsupported(`partial_rotary_factor ${partial} is not supported for this architecture`)
  }
  const rotaryDim = Math.trunc(context.headDim * partial)
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw unsupported(`${rotaryDim} rotary dimensions per head; a positive even number is needed`)
  }
  const written = optionalString(settings, 'rope_type') ?? optionalString(settings, 'type')
  const name = written ?? 'default'
  const kind = context.aliases?.[name] ?? name
  return { rotaryDim, theta, scaling: readScaling(kind, config, settings, rotaryDim, context) }
}

function readScaling(
  kind: string,
  config: JsonObject,
  settings: JsonObject,
  rotaryDim: number,
  { maxPositions }: RopeContext,
): RopeScaling {
  switch (kind) {
    case 'default':
      return { kind: 'none' }
    case 'linear':
      return { kind, factor: number(settings, 'factor', FACTOR) }
    case 'dynamic':
      if (rotaryDim < 4) throw unsupported('dynamic rope needs at least 4 rotary dimensions')
      return { kind, factor: number(settings, 'factor', STRETCH), original: maxPositions }
    case 'llama3':
      return readLlama3(config, settings, maxPositions)
    case 'yarn':
      return readYarn(config, settings, maxPositions)
    case 'longrope':
      return readLongrope(config, settings, rotaryDim, maxPositions)
    default:
      throw unsupported(
        `rope type ${quote(kind)} is not supported; supported: default, linear, dynamic, llama3, yarn, longrope`,
      )
  }
}

/** Context length before scaling; beside the settings it takes precedence, as in Phi-3. */
function originalPositions(config: JsonObject, settings: JsonObject, maxPositions: number): number {
  const key = 'original_max_position_embeddings'
  return optionalInteger(config, key, POSITIONS) ?? integer(settings, key, POSITIONS, maxPositions)
}

function readLlama3(config: JsonObject, settings: JsonObject, maxPositions: number): RopeScaling {
  const lowFreqFactor = number(settings, 'low_freq_factor', FACTOR)
  const highFreqFactor = number(settings, 'high_freq_factor', FACTOR)
  if (highFreqFactor <= lowFreqFactor) {
    throw configError('rope high_freq_factor must be greater than low_freq_factor')
  }
  return {
    kind: 'llama3',
    factor: number(settings, 'factor', FACTOR),
    lowFreqFactor,
    highFreqFactor,
    original: originalPositions(config, settings, maxPositions),
  }
}

function attentionFactor(factor: number, mscale: number): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1
}

/** Attention factor: https://arxiv.org/abs/2309.00071, section 3.4; the mscale pair is DeepSeek's. */
function readYarn(config: JsonObject, settings: JsonObject, maxPositions: number): RopeScaling {
  const original = originalPositions(config, settings, maxPositions)
  const factor = number(settings, 'factor', FACTOR, maxPositions / original)
  const scaleOf = (mscale: number) => attentionFactor(factor, mscale)
  const mscale = optionalNumber(settings, 'mscale', MSCALE)
  const mscaleAll = optionalNumber(settings, 'mscale_all_dim', MSCALE)
  const inferred = mscale && mscaleAll ? scaleOf(mscale) / scaleOf(mscaleAll) : scaleOf(1)
  const betaFast = optionalNumber(settings, 'beta_fast', { min: 0, max: 1e6 }) || 32
  const betaSlow = optionalNumber(settings, 'beta_slow', { min: 0, max: 1e6 }) || 1
  if (betaFast < betaSlow) throw configError('rope beta_fast must not be less than beta_slow')
  return {
    kind: 'yarn',
    factor,
    original,
    betaFast,
    betaSlow,
    truncate: flag(settings, 'truncate', true),
    attentionFactor: number(settings, 'attention_factor', FACTOR, inferred),
  }
}

/** Attention factor: https://arxiv.org/abs/2402.13753, as Phi-3 uses it. */
function readLongrope(
  config: JsonObject,
  settings: JsonObject,
  rotaryDim: number,
  maxPositions: number,
): RopeScaling {
  const original = originalPositions(config, settings, maxPositions)
  const factor = number(settings, 'factor', FACTOR, maxPositions / original)
  const inferred = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original))
  return {
    kind: 'longrope',
    short: numbers(settings, 'short_factor', rotaryDim / 2, FACTOR),
    long: numbers(settings, 'long_factor', rotaryDim / 2, FACTOR),
    original,
    attentionFactor: number(settings, 'attention_factor', FACTOR, inferred),
  }
}
