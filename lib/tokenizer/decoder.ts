/**
 * Streaming decoders: tokens in, text out, one pass, with O(1) work per token. A decoder is a
 * chain of stages after tokenizer.json's `decoder`; each takes pieces of text and emits pieces,
 * holding back only what a later token could still change (half a code point, trailing spaces
 * to be stripped). `decode` is the same chain run to its end, so streaming agrees with it by
 * construction. The stages follow Hugging Face's `tokenizers`, except that an invalid run of
 * byte-fallback tokens becomes one U+FFFD per maximal invalid part instead of one per byte: the
 * latter would hold back every run of bytes until it ends.
 */

import { EngineError } from '../errors.ts'
import { isJsonObject, type JsonObject } from '../weights/json.ts'

type Emit = (piece: string) => void

/** One stage of a running decoder. */
interface Stage {
  push(piece: string, emit: Emit): void
  finish(emit: Emit): void
}

/** Makes a stage for one sequence. */
type StageFactory = () => Stage

/**
 * A decoder, compiled: `start` begins one sequence. `fused`: its pieces are fragments of one
 * piece, no longer one per token.
 */
export interface DecoderPlan {
  readonly stages: readonly StageFactory[]
  readonly fused: boolean
}

const maxStages = 16

function unsupported(what: string): EngineError {
  return new EngineError(
    'ERR_TOKENIZER',
    `tokenizer.json: ${what}; this version decodes the decoders of Llama, Gemma, Qwen, GPT-2 and the like`,
  )
}

/** Characters of byte-level vocabularies: printable bytes stand for themselves, others for 256 + n. */
const byteOfCharacter: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>()
  let shifted = 0
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    map.set(String.fromCharCode(printable ? byte : 256 + shifted++), byte)
  }
  return map
})()

const utf8 = new TextEncoder()

/** A piece of a byte-level vocabulary as bytes; one with a foreign character stands for itself. */
function byteLevelBytes(piece: string): Uint8Array {
  const bytes = new Uint8Array(piece.length)
  for (let i = 0; i < piece.length; i++) {
    const byte = byteOfCharacter.get(piece[i]!)
    if (byte === undefined) return utf8.encode(piece)
    bytes[i] = byte
  }
  return bytes
}

const streamingUtf8 = () => new TextDecoder('utf-8', { ignoreBOM: true })

const byteLevel: StageFactory = () => {
  const decoder = streamingUtf8()
  return {
    push(piece, emit) {
      emit(decoder.decode(byteLevelBytes(piece), { stream: true }))
    },
    finish(emit) {
      emit(decoder.decode())
    },
  }
}

const byteToken = /^<0x([0-9A-Fa-f]{2})>$/

const byteFallback: StageFactory = () => {
  const decoder = streamingUtf8()
  let inRun = false
  return {
    push(piece, emit) {
      const match = byteToken.exec(piece)
      if (match !== null) {
        inRun = true
        emit(decoder.decode(Uint8Array.of(Number.parseInt(match[1]!, 16)), { stream: true }))
        return
      }
      if (inRun) emit(decoder.decode())
      inRun = false
      emit(piece)
    },
    finish(emit) {
      if (inRun) emit(decoder.decode())
    },
  }
}

/** A stage without state that maps each piece, told whether it is the first. */
const mapping =
  (map: (piece: string, first: boolean) => string): StageFactory =>
  () => {
    let first = true
    return {
      push(piece, emit) {
        emit(map(piece, first))
        first = false
      },
      finish() {},
    }
  }

function stripPiece(piece: string, content: string, start: number, stop: number): string {
  let from = 0
  while (from < start && piece[from] === content) from++
  let to = piece.length
  while (piece.length - to < stop && to > from && piece[to - 1] === content) to--
  return piece.slice(from, to)
}

/** Strip over fragments of one piece: cuts `start` characters of the text and `stop` at its end. */
const stripText =
  (content: string, start: number, stop: number): StageFactory =>
  () => {
    let toCut = start
    let held = ''
    return {
      push(piece, emit) {
        let from = 0
        while (toCut > 0 && from < piece.length) {
          if (piece[from] === content) {
            from++
            toCut--
          } else {
            toCut = 0
          }
        }
        const text = held + piece.slice(from)
        let keep = text.length
        while (text.length - keep < stop && keep > 0 && text[keep - 1] === content) keep--
        held = text.slice(keep)
        emit(text.slice(0, keep))
      },
      finish() {},
    }
  }

function stringField(config: JsonObject, key: string, fallback: string): string {
  const value = config[key] ?? fallback
  if (typeof value !== 'string') throw unsupported(`decoder field ${key} is not a string`)
  return value
}

function countField(config: JsonObject, key: string): number {
  const value = config[key] ?? 0
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > 64) {
    throw unsupported(`decoder field ${key} is not a count of 0..64`)
  }
  return value
}

/** Compiles a decoder that is not a sequence; `fused` says what comes in. */
function compileStage(config: JsonObject, fused: boolean): DecoderPlan {
  const perToken = (stage: StageFactory): DecoderPlan => {
    if (fused) throw unsupported(`decoder ${String(config.type)} after tokens were joined`)
    return { stages: [stage], fused }
  }
  switch (config.type) {
    case 'ByteLevel':
      return { stages: [byteLevel], fused: true }
    case 'ByteFallback':
      // What it emits for a run of bytes is one piece in fragments.
      return { stages: perToken(byteFallback).stages, fused: true }
    case 'Fuse':
      return { stages: [], fused: true }
    case 'Replace': {
      const pattern = isJsonObject(config.pattern) ? config.pattern.String : undefined
      const content = stringField(config, 'content', '')
      if (typeof pattern !== 'string' || pattern === '' || content.length > 64) {
        throw unsupported('a Replace decoder without a plain string to replace')
      }
      // A longer pattern could lie across fragments.
      if (pattern.length > 1 && fused) throw unsupported('Replace after tokens were joined')
      return { stages: [mapping((piece) => piece.replaceAll(pattern, content))], fused }
    }
    case 'Strip': {
      const content = stringField(config, 'content', ' ')
      const start = countField(config, 'start')
      const stop = countField(config, 'stop')
      if (content.length !== 1) throw unsupported('Strip of more than one character')
      return fused
        ? { stages: [stripText(content, start, stop)], fused }
        : { stages: [mapping((piece) => stripPiece(piece, content, start, stop))], fused }
    }
    case 'Metaspace': {
      const replacement = stringField(config, 'replacement', '▁')
      if (replacement === '') throw unsupported('Metaspace with an empty replacement')
      const scheme = stringField(
        config,
        'prepend_scheme',
        config.add_prefix_space === false ? 'never' : 'always',
      )
      return perToken(
        mapping((piece, first) =>
          piece.replaceAll(replacement, first && scheme !== 'never' ? '' : ' '),
        ),
      )
    }
    default:
      throw unsupported(`decoder type ${JSON.stringify(config.type)?.slice(0, 80)}`)
  }
}

function collectStages(config: unknown, into: JsonObject[]): void {
  if (!isJsonObject(config)) throw unsupported('the decoder is not an object')
  if (config.type !== 'Sequence') {
    into.push(config)
  } else {
    if (!Array.isArray(config.decoders)) throw unsupported('a Sequence decoder without decoders')
    for (const decoder of config.decoders as readonly unknown[]) {
      if (isJsonObject(decoder) && decoder.type === 'Sequence') {
        throw unsupported('a Sequence decoder inside a Sequence')
      }
      collectStages(decoder, into)
    }
  }
  if (into.length > maxStages) throw unsupported(`more than ${maxStages} decoders`)
}

/** Compiles tokenizer.json's `decoder`; null or absent joins tokens with spaces. */
export function compileDecoder(config: unknown): DecoderPlan {
  if (config === null || config === undefined) {
    return { stages: [mapping((piece, first) => (first ? piece : ` ${piece}`))], fused: false }
  }
  const configs: JsonObject[] = []
  collectStages(config, configs)
  const stages: StageFactory[] = []
  let fused = false
  for (const [index, each] of configs.entries()) {
    // A run of bytes comes out of ByteFallback in fragments: only joining may follow.
    if (configs[index - 1]?.type === 'ByteFallback' && each.type !== 'Fuse') {
      throw unsupported('a decoder other than Fuse after ByteFallback')
    }
    const plan = compileStage(each, fused)
    stages.push(...plan.stages)
    fused = plan.fused
  }
  return { stages, fused }
}

/** A decoder of one sequence. */
export interface TextStream {
  push(piece: string): void
  finish(): void
  /** The text emitted since the last call. */
  take(): string
}

export function startDecoder(plan: DecoderPlan): TextStream {
  let text = ''
  let emit: Emit = (piece) => {
    text += piece
  }
  const entries: Stage[] = []
  const emits: Emit[] = []
  // From the last stage to the first: each emits into the one after it.
  for (let i = plan.stages.length - 1; i >= 0; i--) {
    const stage = plan.stages[i]!()
    const next = emit
    entries.unshift(stage)
    emits.unshift(next)
    emit = (piece) => stage.push(piece, next)
  }
  const first = emit
  return {
    push: first,
    finish() {
      for (let i = 0; i < entries.length; i++) entries[i]!.finish(emits[i]!)
    },
    take() {
      const taken = text
      text = ''
      return taken
    },
  }
}
