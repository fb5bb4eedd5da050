/**
 * Random Llama-shaped checkpoints for benches: a folder with config.json and one bf16 safetensors
 * file, streamed to disk tensor by tensor, the same bytes for the same shape and seed. Weights are
 * uniform with variance 1 / fan-in (the two projections that write the residual stream a further
 * 1 / (2 · layers)), so activations stay finite at any depth. No tokenizer: benches speak token ids.
 */

import { fork } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  renameSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { EngineError } from '../errors.ts'

export interface LlamaShape {
  readonly name: string
  readonly hidden: number
  readonly layers: number
  readonly intermediate: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly vocab: number
  readonly maxPositions: number
  readonly ropeTheta: number
  readonly rmsNormEps: number
}

export const LLAMA_SHAPES: Readonly<Record<string, LlamaShape>> = {
  /** 499.7 M parameters, 999.4 MB. */
  '0.5b': {
    name: '0.5b',
    hidden: 1024,
    layers: 24,
    intermediate: 4864,
    heads: 16,
    kvHeads: 8,
    headDim: 64,
    vocab: 32000,
    maxPositions: 8192,
    ropeTheta: 10000,
    rmsNormEps: 1e-5,
  },
  /** 8.03 B parameters, 16.06 GB: the shape of Llama 3 8B. */
  '8b': {
    name: '8b',
    hidden: 4096,
    layers: 32,
    intermediate: 14336,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    vocab: 128256,
    maxPositions: 8704,
    ropeTheta: 500000,
    rmsNormEps: 1e-5,
  },
  /** 0.2 M parameters: tests, and a first run of a new machine. */
  tiny: {
    name: 'tiny',
    hidden: 64,
    layers: 2,
    intermediate: 192,
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    vocab: 512,
    maxPositions: 512,
    ropeTheta: 10000,
    rmsNormEps: 1e-5,
  },
}

export interface TensorLayout {
  readonly name: string
  /** [rows, columns], or [n] for a norm. */
  readonly shape: readonly number[]
  /** Bytes from the start of the tensor data. */
  readonly offset: number
  readonly bytes: number
  /** Half width of the uniform distribution; 0: the tensor is all ones. */
  readonly halfWidth: number
}

/** Every tensor of the checkpoint in file order, bf16, back to back. */
export function checkpointTensors(shape: LlamaShape): TensorLayout[] {
  const { hidden, layers, intermediate, heads, kvHeads, headDim, vocab } = shape
  const tensors: TensorLayout[] = []
  let offset = 0
  const add = (name: string, dims: readonly number[], std: number) => {
    const bytes = 2 * dims.reduce((product, size) => product * size, 1)
    tensors.push({ name, shape: dims, offset, bytes, halfWidth: std * Math.sqrt(3) })
    offset += bytes
  }
  const residual = 1 / Math.sqrt(2 * layers)
  add('model.embed_tokens.weight', [vocab, hidden], 1)
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `model.layers.${layer}`
    add(`${prefix}.input_layernorm.weight`, [hidden], 0)
    add(`${prefix}.self_attn.q_proj.weight`, [heads * headDim, hidden], 1 / Math.sqrt(hidden))
    add(`${prefix}.self_attn.k_proj.weight`, [kvHeads * headDim, hidden], 1 / Math.sqrt(hidden))
    add(`${prefix}.self_attn.v_proj.weight`, [kvHeads * headDim, hidden], 1 / Math.sqrt(hidden))
    add(
      `${prefix}.self_attn.o_proj.weight`,
      [hidden, heads * headDim],
      residual / Math.sqrt(heads * headDim),
    )
    add(`${prefix}.post_attention_layernorm.weight`, [hidden], 0)
    add(`${prefix}.mlp.gate_proj.weight`, [intermediate, hidden], 1 / Math.sqrt(hidden))
    add(`${prefix}.mlp.up_proj.weight`, [intermediate, hidden], 1 / Math.sqrt(hidden))
    add(
      `${prefix}.mlp.down_proj.weight`,
      [hidden, intermediate],
      residual / Math.sqrt(intermediate),
    )
  }
  add('model.norm.weight', [hidden], 0)
  add('lm_head.weight', [vocab, hidden], 1 / Math.sqrt(hidden))
  return tensors
}

export function countParameters(shape: LlamaShape): number {
  return checkpointTensors(shape).reduce((sum, tensor) => sum + tensor.bytes / 2, 0)
}

/** Bytes of weights one decoded token must read: all but the embedding table, of which one row. */
export function weightBytesPerToken(shape: LlamaShape): number {
  return checkpointTensors(shape).reduce(
    (sum, t) => sum + (t.name === 'model.embed_tokens.weight' ? 2 * shape.hidden : t.bytes),
    0,
  )
}

/** Multiply-adds of the matmuls of one layer stack per token, without the logits. */
export function layerMacsPerToken(shape: LlamaShape): number {
  const { hidden, layers, intermediate, heads, kvHeads, headDim } = shape
  const attention = hidden * headDim * (2 * heads + 2 * kvHeads)
  return layers * (attention + 3 * hidden * intermediate)
}

/** Weight of bf16 value `one`, little-endian. */
const BF16_ONE = 0x3f80
const CHUNK_ELEMENTS = 1 << 20

/** xoshiro128++ (Blackman and Vigna, 2018), seeded through splitmix32. */
export function makeRandom(seed: number): () => number {
  let state = seed >>> 0
  const split = () => {
    state = (state + 0x9e3779b9) >>> 0
    let z = state
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b)
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
    return (z ^ (z >>> 16)) >>> 0
  }
  let [a, b, c, d] = [split(), split(), split(), split()]
  return () => {
    const sum = (a + d) | 0
    const result = (((sum << 7) | (sum >>> 25)) + a) >>> 0
    const t = b << 9
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= t
    d = (d << 11) | (d >>> 21)
    return result
  }
}

/** Fills `out` with bf16 values uniform in [-halfWidth, halfWidth), round to nearest even. */
export function fillUniformBf16(out: Uint16Array, halfWidth: number, random: () => number): void {
  const value = new Float32Array(1)
  const bits = new Uint32Array(value.buffer)
  const scale = halfWidth / 2 ** 31
  for (let i = 0; i < out.length; i++) {
    value[0] = (random() - 2 ** 31) * scale
    const word = bits[0]!
    out[i] = (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
}

function checkpointHeader(shape: LlamaShape, seed: number): Buffer {
  const entries: Record<string, unknown> = {
    __metadata__: { format: 'pt', seed: String(seed), shape: shape.name },
  }
  for (const { name, shape: dims, offset, bytes } of checkpointTensors(shape)) {
    entries[name] = { dtype: 'BF16', shape: dims, data_offsets: [offset, offset + bytes] }
  }
  const json = Buffer.from(JSON.stringify(entries))
  const padded = Math.ceil(json.length / 64) * 64
  const header = Buffer.alloc(8 + padded, ' ')
  header.writeBigUInt64LE(BigInt(padded))
  json.copy(header, 8)
  return header
}

/** Where the tensor data of `model.safetensors` starts. */
export function checkpointDataOffset(shape: LlamaShape, seed: number): number {
  return checkpointHeader(shape, seed).length
}

function llamaConfig(shape: LlamaShape): object {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: shape.hidden,
    num_hidden_layers: shape.layers,
    intermediate_size: shape.intermediate,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    head_dim: shape.headDim,
    vocab_size: shape.vocab,
    max_position_embeddings: shape.maxPositions,
    rope_theta: shape.ropeTheta,
    rms_norm_eps: shape.rmsNormEps,
    hidden_act: 'silu',
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: false,
    bos_token_id: 1,
    eos_token_id: 2,
    torch_dtype: 'bfloat16',
  }
}

export function findShape(name: string): LlamaShape {
  const shape = LLAMA_SHAPES[name]
  if (shape === undefined) {
    const names = Object.keys(LLAMA_SHAPES).join(', ')
    throw new EngineError('ERR_USAGE', `no bench model named ${name}; there are: ${names}`)
  }
  return shape
}

/** Fills the tensors numbered `indexes` in file order; `fd` is the whole file, `base` its data. */
export function writeTensors(
  fd: number,
  base: number,
  shape: LlamaShape,
  seed: number,
  indexes: readonly number[],
): void {
  const tensors = checkpointTensors(shape)
  const chunk = new Uint16Array(CHUNK_ELEMENTS)
  for (const index of indexes) {
    const tensor = tensors[index]!
    const random = makeRandom(seed * 65_537 + index)
    let position = base + tensor.offset
    for (let left = tensor.bytes / 2; left > 0; left -= CHUNK_ELEMENTS) {
      const part = chunk.subarray(0, Math.min(left, CHUNK_ELEMENTS))
      if (tensor.halfWidth === 0) part.fill(BF16_ONE)
      else fillUniformBf16(part, tensor.halfWidth, random)
      position += writeSync(fd, part, 0, part.byteLength, position)
    }
  }
}

/** Tensors dealt out to `count` writers, largest first to the one with the least to do. */
export function shareTensors(shape: LlamaShape, count: number): number[][] {
  const shares = Array.from({ length: count }, () => ({ bytes: 0, indexes: [] as number[] }))
  const tensors = checkpointTensors(shape).map(({ bytes }, index) => ({ bytes, index }))
  for (const { bytes, index } of tensors.sort((a, b) => b.bytes - a.bytes)) {
    const least = shares.reduce((a, b) => (b.bytes < a.bytes ? b : a))
    least.bytes += bytes
    least.indexes.push(index)
  }
  return shares.map(({ indexes }) => indexes).filter((indexes) => indexes.length > 0)
}

/** Below this one process writes as fast as several start. */
const PARALLEL_BYTES = 256e6
const MAX_WRITERS = 16

function defaultWriters(bytes: number): number {
  return bytes < PARALLEL_BYTES ? 1 : Math.min(MAX_WRITERS, os.availableParallelism())
}

/** .ts when run from sources, .js when compiled. */
function writerScript(): string {
  return fileURLToPath(import.meta.url).replace(/checkpoint\.(ts|js)$/, 'checkpoint-writer.$1')
}

function runWriter(request: WriteRequest): Promise<void> {
  const script = writerScript()
  const child = fork(script, [JSON.stringify(request)], {
    execArgv: script.endsWith('.ts') ? ['--import', 'tsx'] : [],
    stdio: ['ignore', 2, 2, 'ipc'],
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('exit', (status, signal) => {
      if (status === 0) return resolve()
      const how = signal === null ? `with status ${status}` : `by ${signal}`
      reject(new EngineError('ERR_IO', `a writer of ${request.file} ended ${how}`))
    })
  })
}

/** What a writer process is told, as JSON. */
export interface WriteRequest {
  readonly file: string
  readonly base: number
  readonly shape: LlamaShape
  readonly seed: number
  readonly indexes: readonly number[]
}

/**
 * The folder `<directory>/llama-<name>-seed<seed>`; written unless it is already there, whole, by
 * `writers` processes (a large one by as many as there are cores). ERR_IO when a writer fails.
 */
export async function ensureCheckpoint(
  shape: LlamaShape,
  seed: number,
  directory: string,
  writers?: number,
): Promise<string> {
  const folder = path.resolve(directory, `llama-${shape.name}-seed${seed}`)
  const file = path.join(folder, 'model.safetensors')
  const header = checkpointHeader(shape, seed)
  const tensors = checkpointTensors(shape)
  const last = tensors.at(-1)!
  const total = header.length + last.offset + last.bytes
  if (existsSync(file) && statSync(file).size === total) return folder

  mkdirSync(folder, { recursive: true })
  const config = `${JSON.stringify(llamaConfig(shape), null, 2)}\n`
  writeFileSync(path.join(folder, 'config.json'), config)
  // A partial file never has the final name: an interrupted run is started over.
  const partial = `${file}.partial`
  const count = writers ?? defaultWriters(total)
  const fd = openSync(partial, 'w')
  try {
    writeSync(fd, header)
    if (count === 1) writeTensors(fd, header.length, shape, seed, [...tensors.keys()])
  } finally {
    closeSync(fd)
  }
  if (count > 1) {
    const request = { file: partial, base: header.length, shape, seed }
    const shares = shareTensors(shape, count)
    await Promise.all(shares.map((indexes) => runWriter({ ...request, indexes })))
  }
  renameSync(partial, file)
  return folder
}
