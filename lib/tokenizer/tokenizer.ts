/**
 * Loads a model folder's tokenizer. Encoding is `@huggingface/tokenizers`; decoding is ours
 * (decoder.ts), so that streaming and decoding at once are the same code.
 */

import { Tokenizer as Encoder } from '@huggingface/tokenizers'
import { EngineError } from '../errors.ts'
import type { JsonObject } from '../weights/json.ts'
import { BackgroundEncoder } from './background-encoder.ts'
import { compileDecoder, type DecoderPlan, startDecoder } from './decoder.ts'
import { type AddedToken, readTokenizerConfig, type TokenizerConfig } from './tokenizer-config.ts'
import { readTokenizerFile } from './tokenizer-file.ts'
import type {
  DecodeOptions,
  Detokenizer,
  EncodeOptions,
  Tokenizer,
  TokenVocabulary,
} from './types.ts'

/** Token id → text of the token as the vocabulary spells it; undefined where there is none. */
function readPieces(file: JsonObject, added: readonly AddedToken[]): (string | undefined)[] {
  const vocab = (file.model as JsonObject).vocab
  const entries: Iterable<readonly [string, number]> = Array.isArray(vocab)
    ? (vocab as readonly [string, number][]).map(([piece], id) => [piece, id] as const)
    : Object.entries(vocab as Readonly<Record<string, number>>)
  const byId = new Map<number, string>()
  for (const [piece, id] of entries) byId.set(id, piece)
  for (const token of added) byId.set(token.id, token.content)
  let vocabSize = 0
  for (const id of byId.keys()) vocabSize = Math.max(vocabSize, id + 1)
  const pieces = new Array<string | undefined>(vocabSize).fill(undefined)
  for (const [id, piece] of byId) pieces[id] = piece
  return pieces
}

/**
 * Added tokens of both files. What tokenizer_config.json names and tokenizer.json does not list
 * is special too, where the vocabulary has it.
 */
function mergeAddedTokens(file: JsonObject, config: TokenizerConfig): JsonObject[] {
  const listed = [...((file.added_tokens ?? []) as readonly JsonObject[])]
  const ids = new Set(listed.map((token) => token.id))
  const contents = new Set(listed.map((token) => token.content))
  const add = (token: AddedToken): void => {
    if (token.content === '' || ids.has(token.id) || contents.has(token.content)) return
    ids.add(token.id)
    contents.add(token.content)
    listed.push({ ...token, normalized: false })
  }
  const vocab = (file.model as JsonObject).vocab
  const idOf = (content: string): number => {
    if (Array.isArray(vocab)) return vocab.findIndex((entry) => entry[0] === content)
    return Object.hasOwn(vocab as object, content)
      ? (vocab as Record<string, number>)[content]!
      : -1
  }
  for (const token of config.addedTokens) {
    if (token.id < maxAddedTokenId) add(token)
  }
  for (const content of [
    ...Object.values(config.specialTokens),
    ...config.additionalSpecialTokens,
  ]) {
    const id = contents.has(content) ? -1 : idOf(content)
    if (id >= 0) add({ id, content, special: true })
  }
  return listed
}

const maxAddedTokenId = 1 << 22

/** Characters. About a millisecond's work for each thousand; a thread costs a tenth of one. */
const minBackgroundLength = 4096

function createDetokenizer(
  plan: DecoderPlan,
  pieceOf: (id: number) => string | undefined,
): Detokenizer {
  const stream = startDecoder(plan)
  return {
    push(ids) {
      for (const id of ids) {
        const piece = pieceOf(id)
        if (piece !== undefined) stream.push(piece)
      }
      return stream.take()
    },
    finish() {
      stream.finish()
      return stream.take()
    },
  }
}

/** As the decoder reads pieces. */
function vocabularyKind(decoder: unknown): TokenVocabulary['kind'] {
  const types = JSON.stringify(decoder ?? null)
  if (types.includes('"ByteLevel"')) return 'byte_level'
  return /"ByteFallback"|"Metaspace"|▁/.test(types) ? 'byte_fallback' : 'raw'
}

function createTokenizer(file: JsonObject, config: TokenizerConfig): Tokenizer {
  const addedTokens = mergeAddedTokens(file, config)
  const tokens = addedTokens.map((token) => ({
    id: token.id as number,
    content: token.content as string,
    special: token.special === true,
  }))
  const plan = compileDecoder(file.decoder)
  const pieces = readPieces(file, tokens)
  const special = new Set(tokens.filter((token) => token.special).map((token) => token.id))
  const files = {
    file: {
      normalizer: null,
      pre_tokenizer: null,
      post_processor: null,
      ...file,
      decoder: null,
      added_tokens: addedTokens,
    },
    config: { eos_token: config.specialTokens.eos_token },
  }
  const encoder = new Encoder(files.file, files.config)
  const background = new BackgroundEncoder(files)
  const bosToken = config.specialTokens.bos_token
  const bosId = bosToken === undefined ? -1 : pieces.indexOf(bosToken)

  const detokenizer = (options: DecodeOptions = {}): Detokenizer =>
    createDetokenizer(
      plan,
      options.skipSpecialTokens === false
        ? (id) => pieces[id]
        : (id) => (special.has(id) ? undefined : pieces[id]),
    )

  /** Characters that the vocabulary has no token for, and no unknown token either, drop out. */
  const complete = (encoded: readonly number[], addBos: boolean): number[] => {
    const ids = encoded.filter((id) => Number.isInteger(id))
    if (addBos && config.addBosToken && bosId >= 0 && ids[0] !== bosId) ids.unshift(bosId)
    return ids
  }

  const encode = (text: string, { addBos = false }: EncodeOptions = {}): number[] => {
    try {
      return complete(encoder.encode(text, { add_special_tokens: addBos }).ids, addBos)
    } catch (cause) {
      const reason = (cause as Error).message
      throw new EngineError('ERR_TOKENIZER', `the text cannot be tokenized: ${reason}`, { cause })
    }
  }

  return {
    vocabSize: pieces.length,
    isSpecial: (id) => special.has(id),
    vocabulary: {
      kind: vocabularyKind(file.decoder),
      pieces: pieces.map((piece) => piece ?? ''),
      special: [...special],
    },
    encode,
    async encodeInBackground(text, options = {}) {
      if (text.length < minBackgroundLength) return encode(text, options)
      const addBos = options.addBos === true
      return complete(await background.encode(text, addBos), addBos)
    },
    async warmUp() {
      await background.encode('', false)
    },
    close: () => background.close(),
    decode(ids, options) {
      const stream = detokenizer(options)
      return stream.push(ids) + stream.finish()
    },
    detokenizer,
  }
}

/**
 * The tokenizer of a model folder; undefined where it has no tokenizer.json. ERR_TOKENIZER for a
 * file that is malformed, too large, or of a kind this version does not read.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer | undefined> {
  const file = readTokenizerFile(folder)
  if (file === undefined) return undefined
  const config = readTokenizerConfig(folder)
  try {
    return createTokenizer(file, config)
  } catch (cause) {
    if (cause instanceof EngineError) throw cause
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new EngineError('ERR_TOKENIZER', `tokenizer.json: ${reason}`, { cause })
  }
}
