/**
 * tokenizer_config.json and special_tokens_map.json of a model folder: the named special tokens
 * (`bos_token` …), added tokens, and the chat template where it is not a file of its own.
 */

import { join } from 'node:path'
import { EngineError } from '../errors.ts'
import { isJsonObject, type JsonObject, readJsonObject } from '../weights/json.ts'

const maxConfigBytes = 16 << 20

/** Named tokens a template may use; in this order in transformers. */
const namedTokens = [
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
] as const

export interface AddedToken {
  readonly id: number
  readonly content: string
  readonly special: boolean
}

export interface TokenizerConfig {
  /** `bos_token` → `<s>`. */
  readonly specialTokens: Readonly<Record<string, string>>
  readonly additionalSpecialTokens: readonly string[]
  /** `added_tokens_decoder`. */
  readonly addedTokens: readonly AddedToken[]
  readonly addBosToken: boolean
  /** As it stands in the file; chat-template.ts checks it. */
  readonly chatTemplate: unknown
}

/** A JSON file that may be absent; ERR_TOKENIZER when it is there and malformed. */
function readOptional(folder: string, name: string): JsonObject {
  try {
    return readJsonObject(
      join(folder, name),
      maxConfigBytes,
      'ERR_TOKENIZER',
      'ERR_MODEL_NOT_FOUND',
    )
  } catch (error) {
    if (error instanceof EngineError && error.code === 'ERR_MODEL_NOT_FOUND') return {}
    throw error
  }
}

/** A token is a string or an AddedToken object. */
function tokenContent(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  return isJsonObject(value) && typeof value.content === 'string' ? value.content : undefined
}

function readAddedTokens(value: unknown): AddedToken[] {
  if (!isJsonObject(value)) return []
  return Object.entries(value).flatMap(([key, token]) => {
    const content = tokenContent(token)
    const id = Number(key)
    if (content === undefined || !Number.isSafeInteger(id) || id < 0) return []
    return [{ id, content, special: isJsonObject(token) && token.special === true }]
  })
}

export function readTokenizerConfig(folder: string): TokenizerConfig {
  const map = readOptional(folder, 'special_tokens_map.json')
  const config = readOptional(folder, 'tokenizer_config.json')
  const specialTokens: Record<string, string> = {}
  for (const name of namedTokens) {
    const content = tokenContent(config[name]) ?? tokenContent(map[name])
    if (content !== undefined) specialTokens[name] = content
  }
  const additional = config.additional_special_tokens ?? map.additional_special_tokens
  return {
    specialTokens,
    additionalSpecialTokens: Array.isArray(additional)
      ? additional.map(tokenContent).filter((content) => content !== undefined)
      : [],
    addedTokens: readAddedTokens(config.added_tokens_decoder),
    addBosToken: config.add_bos_token === true,
    chatTemplate: config.chat_template,
  }
}
