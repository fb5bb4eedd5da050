/**
 * tokenizer.json: read, and checked before anything is built from it. The file is untrusted; what
 * passes has sane ids, a model this version runs, pieces of known types, and neither patterns nor
 * rewriting rules that could make a short text take unbounded time or memory.
 */

import { join } from 'node:path'
import { EngineError } from '../errors.ts'
import { isJsonObject, type JsonObject, readJsonObject } from '../weights/json.ts'
import { screenPattern } from './pattern.ts'

const maxFileBytes = 128 << 20
/** Largest vocabulary in the wild: about 262,144. */
const maxTokenId = (1 << 22) - 1
const maxAddedTokens = 65_536
const maxSequence = 16
const maxNesting = 4
/** Product of what the rewriting rules of a normaliser may multiply a text's length by. */
const maxGrowth = 64
const maxTemplatePieces = 64

const normalizerTypes = new Set([
  'Sequence',
  'NFC',
  'NFD',
  'NFKC',
  'NFKD',
  'Lowercase',
  'Strip',
  'StripAccents',
  'Prepend',
  'Replace',
  'Precompiled',
  'BertNormalizer',
])

const preTokenizerTypes = new Set([
  'Sequence',
  'ByteLevel',
  'Split',
  'Metaspace',
  'Digits',
  'Punctuation',
  'Whitespace',
  'WhitespaceSplit',
  'BertPreTokenizer',
])

const postProcessorTypes = new Set([
  'Sequence',
  'TemplateProcessing',
  'ByteLevel',
  'BertProcessing',
  'RobertaProcessing',
])

function malformed(why: string): EngineError {
  return new EngineError(
    'ERR_TOKENIZER',
    `tokenizer.json: ${why}; the file is damaged, or of a kind this version does not read`,
  )
}

function isTokenId(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= maxTokenId
}

function checkBpe(model: JsonObject): void {
  if (!isJsonObject(model.vocab)) throw malformed('a BPE model without a vocabulary')
  for (const id of Object.values(model.vocab)) {
    if (!isTokenId(id)) throw malformed(`the token id ${String(id).slice(0, 40)}`)
  }
  if (!Array.isArray(model.merges)) throw malformed('a BPE model without merges')
  const asPairs = Array.isArray(model.merges[0])
  for (const merge of model.merges as readonly unknown[]) {
    const isPair = Array.isArray(merge) && merge.length === 2 && merge.every(isString)
    if (asPairs ? !isPair : !isString(merge)) throw malformed('a merge that is not two tokens')
  }
  for (const key of ['end_of_word_suffix', 'continuing_subword_prefix', 'unk_token'] as const) {
    const value = model[key] ?? null
    if (value !== null && !isString(value)) throw malformed(`${key} is not a string`)
  }
}

function checkUnigram(model: JsonObject): void {
  if (!Array.isArray(model.vocab) || model.vocab.length === 0) {
    throw malformed('a Unigram model without a vocabulary')
  }
  if (model.vocab.length > maxTokenId) throw malformed('too large a vocabulary')
  for (const entry of model.vocab as readonly unknown[]) {
    const isPair = Array.isArray(entry) && isString(entry[0]) && Number.isFinite(entry[1])
    if (!isPair) throw malformed('a vocabulary entry that is not a token and a score')
  }
  const unknown = model.unk_id ?? null
  if (unknown !== null && !(isTokenId(unknown) && unknown < model.vocab.length)) {
    throw malformed('unk_id is not a token')
  }
}

function isString(value: unknown): value is string {
  return typeof value === 'string'
}

function checkModel(model: unknown): void {
  if (!isJsonObject(model)) throw malformed('no model')
  // Old files leave the type out; a vocabulary with merges is BPE.
  const type = model.type ?? (model.merges !== undefined ? 'BPE' : 'Unigram')
  if (type === 'BPE') checkBpe(model)
  else if (type === 'Unigram') checkUnigram(model)
  else throw malformed(`the model type ${JSON.stringify(type).slice(0, 40)}`)
}

function checkAddedTokens(tokens: unknown): void {
  if (!Array.isArray(tokens) || tokens.length > maxAddedTokens) throw malformed('added_tokens')
  for (const token of tokens as readonly unknown[]) {
    const isToken =
      isJsonObject(token) && isTokenId(token.id) && isString(token.content) && token.content !== ''
    if (!isToken) throw malformed('an added token without an id and a content')
  }
}

/** Visits a component and, in a Sequence, its members; null and absent are fine. */
function visitComponents(
  component: unknown,
  types: ReadonlySet<string>,
  members: string,
  visit: (component: JsonObject) => void,
  depth = 0,
): void {
  if (component === null || component === undefined) return
  if (!isJsonObject(component)) throw malformed('a component that is not an object')
  if (!isString(component.type) || !types.has(component.type)) {
    throw malformed(`the component ${JSON.stringify(component.type)?.slice(0, 40)}`)
  }
  if (component.type !== 'Sequence') {
    visit(component)
    return
  }
  const list = component[members]
  if (!Array.isArray(list) || list.length > maxSequence || depth >= maxNesting) {
    throw malformed(`a Sequence of ${members} that is missing, too long or too deep`)
  }
  for (const member of list) visitComponents(member, types, members, visit, depth + 1)
}

function checkPattern(pattern: unknown): void {
  if (!isJsonObject(pattern)) throw malformed('a component without its pattern')
  if (isString(pattern.Regex)) screenPattern(pattern.Regex)
  else if (!isString(pattern.String) || pattern.String === '') throw malformed('an empty pattern')
}

function checkNormalizer(normalizer: unknown): void {
  let growth = 1
  visitComponents(normalizer, normalizerTypes, 'normalizers', (component) => {
    if (component.type === 'Replace') {
      checkPattern(component.pattern)
      const content = component.content ?? ''
      if (!isString(content)) throw malformed('a Replace whose content is not a string')
      growth *= Math.max(1, content.length)
    } else if (component.type === 'Prepend') {
      if (!isString(component.prepend) || component.prepend.length > maxGrowth) {
        throw malformed('a Prepend without a short text')
      }
    } else if (component.type === 'NFKD' || component.type === 'NFKC') {
      // The longest compatibility decomposition has 18 characters, but only of one character.
      growth *= 2
    }
    if (growth > maxGrowth) throw malformed('normalisers that multiply the length of a text')
  })
}

function checkPreTokenizer(preTokenizer: unknown): void {
  visitComponents(preTokenizer, preTokenizerTypes, 'pretokenizers', (component) => {
    if (component.type === 'Split') checkPattern(component.pattern)
    if (component.type === 'Metaspace') {
      for (const key of ['replacement', 'str_rep'] as const) {
        const value = component[key] ?? '▁'
        if (!isString(value) || value.length > 4) throw malformed(`a Metaspace ${key}`)
      }
    }
  })
}

function checkPostProcessor(postProcessor: unknown): void {
  visitComponents(postProcessor, postProcessorTypes, 'processors', (component) => {
    if (component.type !== 'TemplateProcessing') return
    for (const key of ['single', 'pair'] as const) {
      const pieces = component[key] ?? []
      if (!Array.isArray(pieces) || pieces.length > maxTemplatePieces) {
        throw malformed('a TemplateProcessing that is too long')
      }
      // Each copy of the text costs its length again.
      const copies = pieces.filter((piece) => isJsonObject(piece) && 'Sequence' in piece)
      if (copies.length > 2) throw malformed('a TemplateProcessing that repeats the text')
    }
  })
}

/** The checked contents of `folder`/tokenizer.json, or undefined where there is none. */
export function readTokenizerFile(folder: string): JsonObject | undefined {
  let file: JsonObject
  try {
    const path = join(folder, 'tokenizer.json')
    file = readJsonObject(path, maxFileBytes, 'ERR_TOKENIZER', 'ERR_MODEL_NOT_FOUND')
  } catch (error) {
    if (error instanceof EngineError && error.code === 'ERR_MODEL_NOT_FOUND') return undefined
    throw error
  }
  checkModel(file.model)
  checkAddedTokens(file.added_tokens ?? [])
  checkNormalizer(file.normalizer)
  checkPreTokenizer(file.pre_tokenizer)
  checkPostProcessor(file.post_processor)
  return file
}
