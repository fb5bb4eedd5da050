/**
 * How checkpoints store weights: plain floats, fp8 e4m3 with factors for blocks (DeepSeek-V3, Qwen3),
 * and MXFP4 (gpt-oss). A tensor of a scaled format is seen here in elements and without its scales.
 */

import { EngineError } from '../errors.ts'
import type { Dtype } from '../program/types.ts'
import { quote, type SafetensorsDtype, type TensorIndex, type TensorInfo } from './safetensors.ts'
import type { ScaleDtype, ScaledFormat } from './types.ts'

export interface StoredTensor {
  readonly info: TensorInfo
  /** As the runtime names it; bf16 for formats that it converts. */
  readonly dtype: Dtype
  /** Elements. */
  readonly shape: readonly number[]
  /** Bits of an element in the file. */
  readonly bits: number
  readonly scales?: {
    readonly format: ScaledFormat
    readonly dtype: ScaleDtype
    readonly tensor: string
    readonly info: TensorInfo
  }
}

const PLAIN: Readonly<Partial<Record<SafetensorsDtype, Dtype>>> = {
  F32: 'f32',
  F16: 'f16',
  BF16: 'bf16',
}
const BITS = { f32: 32, f16: 16, bf16: 16 } as const

/** Dtypes of the factors of fp8: DeepSeek publishes float32, Qwen bf16. */
const FACTORS: Readonly<Partial<Record<SafetensorsDtype, ScaleDtype>>> = {
  F32: 'f32',
  BF16: 'bf16',
}
/** Block of an fp8 weight that shares a factor, in both directions. */
const E4M3_BLOCK = 128
/** Neighbours in a row of MXFP4 that share an exponent. */
export const MXFP4_BLOCK = 32
/** Ends of the names of an MXFP4 tensor and of its exponents. */
export const MXFP4_BLOCKS = '_blocks'
const MXFP4_SCALES = '_scales'

/**
 * How `tensor` is stored; ERR_TENSOR_MISSING without it or its scales, ERR_TENSOR_SHAPE where they do
 * not fit each other, ERR_UNSUPPORTED_MODEL for what cannot be read.
 */
export function storedTensor(index: TensorIndex, tensor: string): StoredTensor {
  const info = tensorInfo(index, tensor)
  if (info.dtype === 'U8' && tensor.endsWith(MXFP4_BLOCKS)) return storedMxfp4(index, tensor, info)
  const factors = `${tensor}_scale_inv`
  if (info.dtype === 'F8_E4M3' && index.tensors.has(factors)) {
    return storedE4m3(index, info, factors)
  }
  const dtype = PLAIN[info.dtype] as keyof typeof BITS | undefined
  if (dtype === undefined) {
    throw new EngineError(
      'ERR_UNSUPPORTED_MODEL',
      `${quote(tensor)} in ${index.files[info.file]!.path} is ${info.dtype}; weights may be F32, F16, BF16, F8_E4M3 with factors for blocks of ${E4M3_BLOCK}, or MXFP4 as gpt-oss has it`,
    )
  }
  return { info, dtype, shape: info.shape, bits: BITS[dtype] }
}

function tensorInfo(index: TensorIndex, tensor: string): TensorInfo {
  const info = index.tensors.get(tensor)
  if (info !== undefined) return info
  throw new EngineError('ERR_TENSOR_MISSING', `the checkpoint has no tensor ${quote(tensor)}`)
}

function storedE4m3(index: TensorIndex, info: TensorInfo, factors: string): StoredTensor {
  const scales = tensorInfo(index, factors)
  const { shape } = info
  const blocks = shape.map((size) => Math.ceil(size / E4M3_BLOCK))
  const dtype = FACTORS[scales.dtype]
  if (shape.length !== 2 || dtype === undefined || !hasShape(scales, blocks)) {
    throw misfit(factors, scales, `a weight of [${shape}] needs F32 or BF16 [${blocks}]`)
  }
  const scaled = { format: 'e4m3', dtype, tensor: factors, info: scales } as const
  return { info, dtype: 'bf16', shape, bits: 8, scales: scaled }
}

/** [..., rows, blocks of a row, bytes of a block] and their exponents [..., rows, blocks of a row]. */
function storedMxfp4(index: TensorIndex, tensor: string, info: TensorInfo): StoredTensor {
  const exponents = `${tensor.slice(0, -MXFP4_BLOCKS.length)}${MXFP4_SCALES}`
  const scales = tensorInfo(index, exponents)
  const { shape } = info
  const blocks = shape.slice(0, -1)
  if (shape.length < 3 || shape.at(-1) !== MXFP4_BLOCK / 2) {
    throw misfit(tensor, info, `MXFP4 needs [..., rows, blocks, ${MXFP4_BLOCK / 2}]`)
  }
  if (scales.dtype !== 'U8' || !hasShape(scales, blocks)) {
    throw misfit(exponents, scales, `blocks of [${shape}] need U8 [${blocks}]`)
  }
  return {
    info,
    dtype: 'bf16',
    shape: [...blocks.slice(0, -1), blocks.at(-1)! * MXFP4_BLOCK],
    bits: 4,
    scales: { format: 'mxfp4', dtype: 'u8', tensor: exponents, info: scales },
  }
}

function hasShape(info: TensorInfo, shape: readonly number[]): boolean {
  return info.shape.length === shape.length && shape.every((n, i) => n === info.shape[i])
}

function misfit(tensor: string, { dtype, shape }: TensorInfo, why: string): EngineError {
  return new EngineError('ERR_TENSOR_SHAPE', `${quote(tensor)} is ${dtype} [${shape}]; ${why}`)
}
