/**
 * The same parameters run densely: copies of a checkpoint with experts in which every token passes
 * through all of them. `dense`: the experts side by side as one feed-forward of E times the width, a
 * dense model of that family, what the parameters cost without routing. `all`: the same experts with
 * k = E behind a router of zeros. Both compute the mean of the experts, so each checks the other.
 */

import { closeSync, mkdirSync, openSync, readSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { EngineError } from '../errors.ts'
import type { Model } from '../models/index.ts'
import type { ExpertsSpec, LinearSpec } from '../models/spec.ts'
import type { TensorInfo } from '../weights/safetensors.ts'

/** Architectures that are another one with experts in place of the feed-forward. */
const DENSE_OF: Readonly<Record<string, readonly [architecture: string, type: string]>> = {
  Qwen3MoeForCausalLM: ['Qwen3ForCausalLM', 'qwen3'],
  MixtralForCausalLM: ['MistralForCausalLM', 'mistral'],
}
const EXPERT_COUNTS = ['num_experts', 'num_local_experts', 'num_experts_per_tok']

interface Tensor {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: Buffer
}

export interface DenseCopies {
  readonly dense: string
  readonly all: string
}

/** Writes both copies below `folder`; ERR_UNSUPPORTED_MODEL for a model that has no dense form here. */
export function writeDenseCopies(model: Model, folder: string): DenseCopies {
  const dense = DENSE_OF[model.architecture]
  const blocks = model.spec.layers.map(({ feedForward }) => feedForward)
  if (dense === undefined || !blocks.every((block) => block.kind === 'experts')) {
    throw new EngineError(
      'ERR_UNSUPPORTED_MODEL',
      `${model.architecture} has no dense form to compare with; ${Object.keys(DENSE_OF).join(' and ')} with experts in every layer have`,
    )
  }
  const original = readTensors(model)
  const tensors = new Map(original)
  const routers = new Map(original)
  blocks.forEach((block, layer) => {
    const matrices = mergeExperts(original, block)
    for (const { tensor } of [block.router, ...block.gates, ...block.ups, ...block.downs]) {
      tensors.delete(tensor)
    }
    for (const [name, tensor] of Object.entries(matrices)) {
      tensors.set(`model.layers.${layer}.mlp.${name}.weight`, tensor)
    }
    const router = original.get(block.router.tensor)!
    routers.set(block.router.tensor, { ...router, bytes: Buffer.alloc(router.bytes.length) })
  })
  const [{ gates, intermediateSize }] = blocks as [ExpertsSpec]
  const [architecture, type] = dense
  const config = Object.entries(model.config).filter(([key]) => !EXPERT_COUNTS.includes(key))
  const copies = { dense: path.join(folder, 'dense'), all: path.join(folder, 'all-experts') }
  writeModel(copies.dense, tensors, {
    ...Object.fromEntries(config),
    architectures: [architecture],
    model_type: type,
    intermediate_size: gates.length * intermediateSize,
  })
  const chosen = { num_experts_per_tok: gates.length, norm_topk_prob: true }
  writeModel(copies.all, routers, { ...model.config, ...chosen })
  return copies
}

function readTensors({ tensors, folder }: Model): Map<string, Tensor> {
  const files = tensors.files.map((file) => openSync(path.resolve(folder, file.path), 'r'))
  try {
    return new Map(
      [...tensors.tensors].map(([name, info]) => [name, { ...info, bytes: read(files, info) }]),
    )
  } finally {
    for (const file of files) closeSync(file)
  }
}

function read(files: readonly number[], { file, offset, bytes }: TensorInfo): Buffer {
  const buffer = Buffer.alloc(bytes)
  if (readSync(files[file]!, buffer, 0, bytes, offset) === bytes) return buffer
  throw new EngineError('ERR_IO', 'the checkpoint has become shorter')
}

/** Gates below each other, ups below each other, downs side by side and divided by their number. */
function mergeExperts(
  tensors: ReadonlyMap<string, Tensor>,
  { gates, ups, downs, intermediateSize }: ExpertsSpec,
): Record<string, Tensor> {
  const each = (linears: readonly LinearSpec[]) => linears.map(({ tensor }) => tensors.get(tensor)!)
  const below = (linears: readonly LinearSpec[]): Tensor => {
    const parts = each(linears)
    const [{ dtype, shape }] = parts as [Tensor]
    const bytes = Buffer.concat(parts.map((part) => part.bytes))
    return { dtype, shape: [parts.length * shape[0]!, shape[1]!], bytes }
  }
  const parts = each(downs).map((part) => ({ ...part, bytes: divided(part, downs.length) }))
  const [{ dtype, shape, bytes }] = parts as [Tensor]
  const rowBytes = bytes.length / shape[0]!
  const rows = Array.from({ length: shape[0]! }, (_, row) =>
    parts.map((part) => part.bytes.subarray(row * rowBytes, (row + 1) * rowBytes)),
  )
  return {
    gate_proj: below(gates),
    up_proj: below(ups),
    down_proj: {
      dtype,
      shape: [shape[0]!, parts.length * intermediateSize],
      bytes: Buffer.concat(rows.flat()),
    },
  }
}

/** bf16 values over a power of two: exact but for the smallest. */
function divided({ dtype, bytes }: Tensor, divisor: number): Buffer {
  if (dtype !== 'BF16' || !Number.isInteger(Math.log2(divisor))) {
    throw new EngineError(
      'ERR_UNSUPPORTED_MODEL',
      `a dense form is made of bf16 weights and a power of two of experts, not of ${dtype} and ${divisor}`,
    )
  }
  const out = Buffer.from(bytes)
  const words = new Uint16Array(out.buffer, out.byteOffset, out.length / 2)
  const exponent = Math.log2(divisor) << 7
  words.forEach((word, i) => {
    words[i] = (word & 0x7f80) > exponent ? word - exponent : word & 0x8000
  })
  return out
}

function writeModel(
  folder: string,
  tensors: ReadonlyMap<string, Tensor>,
  config: Readonly<Record<string, unknown>>,
): void {
  let end = 0
  const header: Record<string, unknown> = {}
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] }
    end += bytes.length
  }
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  mkdirSync(folder, { recursive: true })
  const data = [...tensors.values()].map(({ bytes }) => bytes)
  writeFileSync(path.join(folder, 'model.safetensors'), Buffer.concat([length, text, ...data]))
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config))
}
