/** generation_config.json: what a model's makers recommend for sampling. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { EngineError } from '../errors.ts'
import { type JsonObject, readJsonObject } from '../weights/json.ts'

export interface GenerationDefaults {
  readonly temperature?: number
  readonly topP?: number
  readonly topK?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly maxTokens?: number
  /** In place of config.json's. */
  readonly eosTokenIds?: readonly number[]
}

const MAX_BYTES = 1 << 20

/**
 * Reads `folder`/generation_config.json; {} where there is none. As in transformers, temperature,
 * top_p, top_k and min_p count only with `do_sample`. ERR_MODEL_CONFIG for values out of range.
 */
export function readGenerationDefaults(folder: string): GenerationDefaults {
  const path = join(folder, 'generation_config.json')
  if (!existsSync(path)) return {}
  const config = readJsonObject(path, MAX_BYTES, 'ERR_MODEL_CONFIG', 'ERR_IO')
  const samples = config.do_sample === true
  const temperature = samples ? (number(config, 'temperature', 0, 100) ?? 1) : undefined
  const topP = samples ? number(config, 'top_p', 0, 1) : undefined
  const topK = samples ? number(config, 'top_k', -1, 1e9) : undefined
  const minP = samples ? number(config, 'min_p', 0, 1) : undefined
  const repetitionPenalty = number(config, 'repetition_penalty', 1e-3, 1e3)
  const maxTokens = number(config, 'max_new_tokens', 1, 1e9)
  const eosTokenIds = tokenIds(config)
  return {
    ...(temperature !== undefined && { temperature }),
    ...(topP !== undefined && topP > 0 && { topP }),
    ...(topK !== undefined && { topK: Math.max(0, Math.floor(topK)) }),
    ...(minP !== undefined && { minP }),
    ...(repetitionPenalty !== undefined && { repetitionPenalty }),
    ...(maxTokens !== undefined && { maxTokens: Math.floor(maxTokens) }),
    ...(eosTokenIds !== undefined && { eosTokenIds }),
  }
}

function number(config: JsonObject, key: string, min: number, max: number): number | undefined {
  const value = config[key]
  if (value === undefined || value === null) return undefined
  if (typeof value !== 'number' || !(value >= min && value <= max))
    throw new EngineError(
      'ERR_MODEL_CONFIG',
      `generation_config.json: ${key} must be a number from ${min} to ${max}`,
    )
  return value
}

function tokenIds(config: JsonObject): number[] | undefined {
  const value = config.eos_token_id
  if (value === undefined || value === null) return undefined
  const ids = Array.isArray(value) ? value : [value]
  if (ids.length > 1024 || !ids.every((id) => Number.isSafeInteger(id) && id >= 0))
    throw new EngineError(
      'ERR_MODEL_CONFIG',
      'generation_config.json: eos_token_id must be a token id or a list of them',
    )
  return ids
}
