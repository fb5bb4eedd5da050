/**
 * Typed, bounded reading of config.json. Every number has a range, so that a hostile config cannot
 * ask for a huge allocation; whatever would change results and is not implemented is refused by
 * name. Absent and null mean the same.
 */

import { join } from 'node:path'
import { EngineError } from '../errors.ts'
import { isJsonObject, type JsonObject, readJsonObject } from '../weights/json.ts'
import { quote } from '../weights/safetensors.ts'

const MAX_CONFIG_BYTES = 16e6

/** Reads `folder`/config.json. */
export function readConfig(folder: string): JsonObject {
  return readJsonObject(
    join(folder, 'config.json'),
    MAX_CONFIG_BYTES,
    'ERR_MODEL_CONFIG',
    'ERR_MODEL_NOT_FOUND',
  )
}

export function configError(message: string): EngineError {
  return new EngineError('ERR_MODEL_CONFIG', `config.json: ${message}`)
}

export function unsupported(message: string): EngineError {
  return new EngineError('ERR_UNSUPPORTED_MODEL', `config.json: ${message}`)
}

export interface Range {
  readonly min: number
  readonly max: number
}

function isAbsent(config: JsonObject, key: string): boolean {
  return !Object.hasOwn(config, key) || config[key] === null
}

/** An integer in [range.min, range.max]; `fallback` when absent; ERR_MODEL_CONFIG without one. */
export function integer(config: JsonObject, key: string, range: Range, fallback?: number): number {
  const value = number(config, key, range, fallback)
  if (!Number.isSafeInteger(value)) throw configError(`${key} is ${value}, not a whole number`)
  return value
}

export function number(config: JsonObject, key: string, range: Range, fallback?: number): number {
  const value = optionalNumber(config, key, range) ?? fallback
  if (value === undefined) throw configError(`${key} is missing`)
  return value
}

export function optionalNumber(config: JsonObject, key: string, range: Range): number | undefined {
  if (isAbsent(config, key)) return undefined
  const value = config[key]
  if (typeof value !== 'number') throw configError(`${key} is not a number`)
  if (!(value >= range.min && value <= range.max)) {
    throw configError(`${key} is ${value}, outside ${range.min} to ${range.max}`)
  }
  return value
}

export function optionalInteger(config: JsonObject, key: string, range: Range): number | undefined {
  return isAbsent(config, key) ? undefined : integer(config, key, range)
}

export function flag(config: JsonObject, key: string, fallback: boolean): boolean {
  if (isAbsent(config, key)) return fallback
  const value = config[key]
  if (typeof value !== 'boolean') throw configError(`${key} is not true or false`)
  return value
}

export function optionalString(config: JsonObject, key: string): string | undefined {
  if (isAbsent(config, key)) return undefined
  const value = config[key]
  if (typeof value !== 'string') throw configError(`${key} is not a string`)
  return value
}

export function optionalObject(config: JsonObject, key: string): JsonObject | undefined {
  if (isAbsent(config, key)) return undefined
  const value = config[key]
  if (!isJsonObject(value)) throw configError(`${key} is not an object`)
  return value
}

/** A list of exactly `length` numbers in `range`. */
export function numbers(config: JsonObject, key: string, length: number, range: Range): number[] {
  const value = config[key]
  if (!Array.isArray(value) || value.length !== length) {
    throw configError(`${key} is not a list of ${length} numbers`)
  }
  for (const item of value) {
    if (typeof item !== 'number' || !(item >= range.min && item <= range.max)) {
      throw configError(`${key} has an entry outside ${range.min} to ${range.max}`)
    }
  }
  return value
}

/** A token id, a list of them, or nothing; ids outside the vocabulary are refused. */
export function tokenIds(config: JsonObject, key: string, vocabSize: number): number[] {
  if (isAbsent(config, key)) return []
  const value = config[key]
  const ids: unknown[] = Array.isArray(value) ? value : [value]
  if (ids.length > 1024) throw configError(`${key} lists ${ids.length} tokens`)
  for (const id of ids) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= vocabSize) {
      throw configError(`${key} is not a token of the vocabulary (0 to ${vocabSize - 1})`)
    }
  }
  return ids as number[]
}

/** Keys that would change results if they were ignored, and the values that change nothing. */
const RESULT_CHANGING: Readonly<Record<string, readonly unknown[]>> = {
  quantization_config: [],
  compression_config: [],
  attention_sinks: [false],
  use_attention_sinks: [false],
  add_swa_attention_sink_bias: [false],
  attention_chunk_size: [],
  attention_multiplier: [],
  attn_temperature_tuning: [false, 0],
  attn_output_gate: [false],
  clip_qkv: [],
  embedding_multiplier: [1],
  residual_multiplier: [1],
  logits_scaling: [1],
  logit_scale: [1],
  scale_emb: [1],
  no_rope_layers: [],
  no_rope_layer_interval: [0],
  num_experts: [0],
  num_local_experts: [0],
  n_routed_experts: [0],
  kv_lora_rank: [0],
  num_kv_shared_layers: [0],
  hidden_size_per_layer_input: [0],
  altup_num_inputs: [0, 1],
  parallel_residual: [false],
  use_parallel_residual: [false],
  alibi: [false],
  use_bidirectional_attention: [false],
  rope_interleaved: [false],
  rope_interleave: [false],
  use_qk_norm: [false],
  qk_layernorm: [false],
  is_encoder_decoder: [false],
  add_cross_attention: [false],
}

/** Formats of weights that loading converts: MXFP4, fp8 e4m3 with factors for blocks of 128 × 128. */
function isReadableQuantization(config: JsonObject): boolean {
  const { quantization_config: settings } = config
  if (!isJsonObject(settings)) return false
  const { quant_method: method, fmt = 'e4m3', weight_block_size: block } = settings
  const isBlock = Array.isArray(block) && block.length === 2 && block.every((size) => size === 128)
  return method === 'mxfp4' || (method === 'fp8' && fmt === 'e4m3' && isBlock)
}

/** Refuses, by name, every feature that the family does not implement. */
export function refuseUnknownFeatures(config: JsonObject, known: readonly string[] = []): void {
  for (const [key, neutral] of Object.entries(RESULT_CHANGING)) {
    if (known.includes(key) || (key === 'quantization_config' && isReadableQuantization(config)))
      continue
    if (isAbsent(config, key) || neutral.includes(config[key])) continue
    const shown = quote(JSON.stringify(config[key]) ?? '')
    throw unsupported(`${key} = ${shown} is not supported`)
  }
}

/** ERR_UNSUPPORTED_MODEL unless the activation is among `names`. */
export function requireActivation(config: JsonObject, key: string, names: readonly string[]): void {
  const name = optionalString(config, key)
  if (name !== undefined && !names.includes(name)) {
    throw unsupported(`${key} ${quote(name)} is not supported; this family has ${names.join(', ')}`)
  }
}
