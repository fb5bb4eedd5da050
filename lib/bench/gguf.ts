/**
 * Writes a bench checkpoint (checkpoint.ts) as GGUF version 3 for llama.cpp, so that both engines
 * run on the same weights: bf16 matrices bit for bit, norms widened to f32, and the rows of q and k
 * reordered within each head from half-split rotary pairs (i, i + D/2) to adjacent ones (2i, 2i + 1),
 * which is what llama.cpp's `llama` architecture rotates. The tokenizer section is a byte vocabulary
 * padded with unused names: benches pass token ids, but the loader insists on one.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */

import { closeSync, existsSync, openSync, readSync, renameSync, statSync, writeSync } from 'node:fs'
import path from 'node:path'
import { EngineError } from '../errors.ts'
import {
  checkpointDataOffset,
  checkpointTensors,
  type LlamaShape,
  type TensorLayout,
} from './checkpoint.ts'

const ALIGNMENT = 32
const GGML_F32 = 0
const GGML_BF16 = 30
const FILE_TYPE_MOSTLY_BF16 = 32

/** Value types of metadata. */
const GGUF_U32 = 4
const GGUF_I32 = 5
const GGUF_F32 = 6
const GGUF_STRING = 8
const GGUF_ARRAY = 9

/** Token types of the vocabulary. */
const TOKEN_NORMAL = 1
const TOKEN_UNKNOWN = 2
const TOKEN_CONTROL = 3
const TOKEN_BYTE = 6

const GGUF_LAYER_NAMES: Readonly<Record<string, string>> = {
  'input_layernorm.weight': 'attn_norm.weight',
  'self_attn.q_proj.weight': 'attn_q.weight',
  'self_attn.k_proj.weight': 'attn_k.weight',
  'self_attn.v_proj.weight': 'attn_v.weight',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
}

const GGUF_MODEL_NAMES: Readonly<Record<string, string>> = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}

export function ggufTensorName(name: string): string {
  const layer = /^model\.layers\.(\d+)\.(.*)$/.exec(name)
  const found =
    layer === null ? GGUF_MODEL_NAMES[name] : `blk.${layer[1]}.${GGUF_LAYER_NAMES[layer[2]!]}`
  if (found === undefined) throw new EngineError('ERR_INTERNAL', `no GGUF name for tensor ${name}`)
  return found
}

/**
 * Reorders the rows of a q or k projection for adjacent rotary pairs: within each head, row
 * half · D/2 + i moves to row 2i + half. `rows` holds whole heads of `headDim` rows.
 */
export function interleaveRotaryRows(rows: Buffer, headDim: number, rowBytes: number): Buffer {
  const out = Buffer.allocUnsafe(rows.length)
  const half = headDim / 2
  for (let row = 0; row < rows.length / rowBytes; row++) {
    const head = Math.floor(row / headDim)
    const inHead = row % headDim
    const target = head * headDim + 2 * (inHead % half) + Math.floor(inHead / half)
    rows.copy(out, target * rowBytes, row * rowBytes, (row + 1) * rowBytes)
  }
  return out
}

/** Little-endian fields appended one after another. */
class ByteWriter {
  readonly #parts: Buffer[] = []

  u32(value: number): this {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(value)
    this.#parts.push(bytes)
    return this
  }
  u64(value: number): this {
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(BigInt(value))
    this.#parts.push(bytes)
    return this
  }
  f32(value: number): this {
    const bytes = Buffer.alloc(4)
    bytes.writeFloatLE(value)
    this.#parts.push(bytes)
    return this
  }
  string(text: string): this {
    const bytes = Buffer.from(text)
    this.u64(bytes.length)
    this.#parts.push(bytes)
    return this
  }
  bytes(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

/** Names, scores and types of a vocabulary: three control tokens, 256 bytes, then fillers. */
function byteVocabulary(size: number): { text: string; score: number; type: number }[] {
  return Array.from({ length: size }, (_, id) => {
    if (id === 0) return { text: '<unk>', score: 0, type: TOKEN_UNKNOWN }
    if (id <= 2) return { text: id === 1 ? '<s>' : '</s>', score: 0, type: TOKEN_CONTROL }
    if (id < 259) {
      const hex = (id - 3).toString(16).toUpperCase().padStart(2, '0')
      return { text: `<0x${hex}>`, score: 0, type: TOKEN_BYTE }
    }
    return { text: `[${id}]`, score: -id, type: TOKEN_NORMAL }
  })
}

function ggufMetadata(shape: LlamaShape): { count: number; bytes: Buffer } {
  const out = new ByteWriter()
  let count = 0
  const key = (name: string, type: number) => {
    count++
    return out.string(name).u32(type)
  }
  const vocabulary = byteVocabulary(shape.vocab)
  key('general.architecture', GGUF_STRING).string('llama')
  key('general.name', GGUF_STRING).string(`random ${shape.name}`)
  key('general.file_type', GGUF_U32).u32(FILE_TYPE_MOSTLY_BF16)
  key('general.alignment', GGUF_U32).u32(ALIGNMENT)
  key('llama.context_length', GGUF_U32).u32(shape.maxPositions)
  key('llama.embedding_length', GGUF_U32).u32(shape.hidden)
  key('llama.block_count', GGUF_U32).u32(shape.layers)
  key('llama.feed_forward_length', GGUF_U32).u32(shape.intermediate)
  key('llama.attention.head_count', GGUF_U32).u32(shape.heads)
  key('llama.attention.head_count_kv', GGUF_U32).u32(shape.kvHeads)
  key('llama.attention.key_length', GGUF_U32).u32(shape.headDim)
  key('llama.attention.value_length', GGUF_U32).u32(shape.headDim)
  key('llama.attention.layer_norm_rms_epsilon', GGUF_F32).f32(shape.rmsNormEps)
  key('llama.rope.dimension_count', GGUF_U32).u32(shape.headDim)
  key('llama.rope.freq_base', GGUF_F32).f32(shape.ropeTheta)
  key('llama.vocab_size', GGUF_U32).u32(shape.vocab)
  key('tokenizer.ggml.model', GGUF_STRING).string('llama')
  key('tokenizer.ggml.tokens', GGUF_ARRAY).u32(GGUF_STRING).u64(shape.vocab)
  for (const token of vocabulary) out.string(token.text)
  key('tokenizer.ggml.scores', GGUF_ARRAY).u32(GGUF_F32).u64(shape.vocab)
  for (const token of vocabulary) out.f32(token.score)
  key('tokenizer.ggml.token_type', GGUF_ARRAY).u32(GGUF_I32).u64(shape.vocab)
  for (const token of vocabulary) out.u32(token.type)
  key('tokenizer.ggml.bos_token_id', GGUF_U32).u32(1)
  key('tokenizer.ggml.eos_token_id', GGUF_U32).u32(2)
  key('tokenizer.ggml.unknown_token_id', GGUF_U32).u32(0)
  return { count, bytes: out.bytes() }
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
}

function ggufBytes(tensor: TensorLayout): number {
  return tensor.shape.length === 1 ? tensor.bytes * 2 : tensor.bytes
}

function ggufHeader(shape: LlamaShape): Buffer {
  const tensors = checkpointTensors(shape)
  const metadata = ggufMetadata(shape)
  const head = Buffer.concat([
    Buffer.from('GGUF'),
    new ByteWriter().u32(3).u64(tensors.length).u64(metadata.count).bytes(),
  ])
  const infos = new ByteWriter()
  let offset = 0
  for (const tensor of tensors) {
    infos.string(ggufTensorName(tensor.name)).u32(tensor.shape.length)
    // The fastest dimension first: columns, then rows.
    for (const size of [...tensor.shape].reverse()) infos.u64(size)
    infos.u32(tensor.shape.length === 1 ? GGML_F32 : GGML_BF16).u64(offset)
    offset += align(ggufBytes(tensor))
  }
  const header = Buffer.concat([head, metadata.bytes, infos.bytes()])
  return Buffer.concat([header, Buffer.alloc(align(header.length) - header.length)])
}

/** The tensor as llama.cpp wants it. */
function convertTensor(shape: LlamaShape, tensor: TensorLayout, bf16: Buffer): Buffer {
  if (tensor.shape.length === 1) {
    const f32 = Buffer.alloc(bf16.length * 2)
    for (let i = 0; i < bf16.length / 2; i++) bf16.copy(f32, i * 4 + 2, i * 2, i * 2 + 2)
    return f32
  }
  if (/self_attn\.[qk]_proj/.test(tensor.name)) {
    return interleaveRotaryRows(bf16, shape.headDim, tensor.shape[1]! * 2)
  }
  return bf16
}

/** `model.gguf` beside the checkpoint's `model.safetensors`; written unless it is already there. */
export function ensureGguf(shape: LlamaShape, seed: number, folder: string): string {
  const file = path.join(folder, 'model.gguf')
  const header = ggufHeader(shape)
  const tensors = checkpointTensors(shape)
  const total = tensors.reduce((sum, tensor) => sum + align(ggufBytes(tensor)), header.length)
  if (existsSync(file) && statSync(file).size === total) return file

  const dataOffset = checkpointDataOffset(shape, seed)
  const source = openSync(path.join(folder, 'model.safetensors'), 'r')
  const partial = `${file}.partial`
  const out = openSync(partial, 'w')
  try {
    writeSync(out, header)
    for (const tensor of tensors) {
      const bf16 = Buffer.allocUnsafe(tensor.bytes)
      const got = readSync(source, bf16, 0, tensor.bytes, dataOffset + tensor.offset)
      if (got !== tensor.bytes) {
        throw new EngineError('ERR_IO', `${folder}: ${tensor.name} is cut short; delete the folder`)
      }
      const data = convertTensor(shape, tensor, bf16)
      writeSync(out, data)
      writeSync(out, Buffer.alloc(align(data.length) - data.length))
    }
  } finally {
    closeSync(source)
    closeSync(out)
  }
  renameSync(partial, file)
  return file
}
