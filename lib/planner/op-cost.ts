/**
 * Time of one op of a program alone on its device, by kind: matmuls by waves of tiles, attention by
 * bytes and operations, collectives by latency and bytes, everything else by the bytes it must move.
 * An op that costs something else than its bytes is a function and a line in COSTS.
 */

import { EngineError } from '../errors.ts'
import { DTYPE_BYTES, type Program, type ProgramBuffer } from '../program/types.ts'
import {
  bufferOf,
  type CostContext,
  type CostFunction,
  colsOf,
  memoryBound,
  NOTHING,
  type OpCost,
  partsOf,
  rowsOf,
  seenBytes,
  streaming,
} from './cost-context.ts'
import { EXPERT_COSTS } from './expert-cost.ts'
import type { Hardware } from './hardware.ts'
import { type MatmulShape, matmulBytes, matmulSeconds } from './matmul-cost.ts'
import { type Collective, collectiveSeconds } from './network-cost.ts'
import { overlappedSeconds, USUAL_NETWORK_SHARE } from './overlap-cost.ts'
import { attentionWork, type StepShape } from './step-shape.ts'

export type { OpCost } from './cost-context.ts'

/** Cost of every op in a step of `shape`; `bounds` are the part boundaries, [parts + 1]. */
export function programCosts(
  hardware: Hardware,
  program: Program,
  shape: StepShape,
  bounds: readonly number[],
  networkShare = USUAL_NETWORK_SHARE,
): OpCost[] {
  const twins = twinsOf(program)
  const parts = partsOf(program)
  const costs: OpCost[] = []
  program.ops.forEach((op, index) => {
    const twin = twins[index]!
    const part = parts[index]
    const rows =
      part === undefined
        ? { begin: 0, end: shape.numTokens }
        : { begin: bounds[part]!, end: bounds[part + 1]! }
    const context = { hardware, program, op, shape, ...rows, networkShare }
    costs.push(twin < index ? costs[twin]! : opCost(context))
  })
  return costs
}

/** Layers repeat: for each op the first that costs the same in every step. */
const TWINS = new WeakMap<Program, Int32Array>()

function twinsOf(program: Program): Int32Array {
  const known = TWINS.get(program)
  if (known !== undefined) return known
  const first = new Map<string, number>()
  const parts = partsOf(program)
  const twins = Int32Array.from(program.ops, ({ kind, attrs, inputs, outputs }, index) => {
    const operands = [...inputs, ...outputs].map((view) => {
      if (view === null) return null
      const { shape, dtype } = program.buffers[view.buffer]!
      return [shape, dtype, view.part]
    })
    const key = JSON.stringify([kind, attrs, operands, parts[index]])
    const twin = first.get(key) ?? index
    first.set(key, twin)
    return twin
  })
  TWINS.set(program, twins)
  return twins
}

function opCost(context: CostContext): OpCost {
  const { op, begin, end } = context
  const cost = COSTS[op.kind]
  if (cost === undefined) {
    throw new EngineError('ERR_INTERNAL', `the cost of ${op.kind} is not known`, { op: op.label })
  }
  return end === begin ? NOTHING : cost(context)
}

/** A row of the table per token, and the row it becomes. */
const embed: CostFunction = (context) =>
  memoryBound(context.hardware, 2 * seenBytes(context, bufferOf(context, 'outputs', 0)!))

/** Reads q, k and v; writes q, and k and v into the cache. */
const splitRopeCache: CostFunction = (context) =>
  memoryBound(context.hardware, 2 * seenBytes(context, bufferOf(context, 'inputs', 0)!))

const gatherRows: CostFunction = (context) =>
  memoryBound(context.hardware, 2 * seenBytes(context, bufferOf(context, 'outputs', 0)!))

function matmulShapeOf(context: CostContext): MatmulShape {
  const x = bufferOf(context, 'inputs', 0)!
  const weight = bufferOf(context, 'inputs', 1)!
  return {
    rows: rowsOf(context, x),
    cols: weight.shape[0] as number,
    depth: colsOf(weight),
    elementBytes: DTYPE_BYTES[x.dtype],
    weightBytes: DTYPE_BYTES[weight.dtype],
  }
}

function matmulOf(context: CostContext): OpCost {
  const { hardware } = context
  const shape = matmulShapeOf(context)
  const secondsWith = (units: number) =>
    hardware.launchSeconds + matmulSeconds(hardware, shape, units)
  return {
    seconds: secondsWith(hardware.units),
    secondsWith,
    flops: 2 * shape.rows * shape.cols * shape.depth,
    bytes: matmulBytes(shape),
    networkBytes: 0,
    computeShare: 1,
  }
}

/** Rows of a prompt that one block takes. */
const ATTENTION_ROWS = 128

/** What a kind of attention needs for a token's key and value. */
interface AttentionSizes {
  /** Bytes of both. */
  readonly keyBytes: number
  /** Operations of one query head with them. */
  readonly headFlops: number
  readonly queryBytes: number
}

/** Rows that decode stream their keys and values; the others multiply. One launch does both. */
function attentionOf(context: CostContext, sizes: AttentionSizes): OpCost {
  const { hardware, op, shape, begin, end } = context
  const { keyBytes, headFlops, queryBytes: q } = sizes
  const window = op.attrs.window as number | undefined
  const work = attentionWork(shape, begin, end, window)
  const { decodeKeys, prefillPairs, prefillKeys, longestRow } = work
  const pairFlops = headFlops * (op.attrs.heads as number)
  const decodeBytes = decodeKeys * keyBytes
  const prefillBytes = prefillKeys * keyBytes + 2 * q
  const prefillFlops = prefillPairs * pairFlops
  const { memoryBytesPerSecond, pagedEfficiency, attentionFlopPerSecond, launchSeconds } = hardware
  // The last rows of a long prompt are one block's work, and nobody shares it.
  const longest = headFlops * ATTENTION_ROWS * longestRow * hardware.units
  const arithmetic = Math.max(prefillFlops, longest) / attentionFlopPerSecond
  const seconds =
    launchSeconds +
    Math.max(
      decodeBytes / (memoryBytesPerSecond * pagedEfficiency),
      (decodeKeys * pairFlops) / attentionFlopPerSecond,
    ) +
    Math.max(arithmetic, prefillBytes / memoryBytesPerSecond)
  return {
    seconds,
    computeShare: arithmetic / seconds,
    flops: prefillFlops + decodeKeys * pairFlops,
    bytes: decodeBytes + prefillBytes,
    networkBytes: 0,
  }
}

const attention: CostFunction = (context) => {
  const { kv_heads: kvHeads, head_dim: headDim } = context.op.attrs as Record<string, number>
  const kv = bufferOf(context, 'inputs', 1)!
  return attentionOf(context, {
    keyBytes: 2 * kvHeads! * headDim! * DTYPE_BYTES[kv.dtype],
    headFlops: 4 * headDim!,
    queryBytes: seenBytes(context, bufferOf(context, 'inputs', 0)!),
  })
}

/** All heads share a key, and its first part is the value: decode may be bound by arithmetic too. */
const mlaAttention: CostFunction = (context) => {
  const { latent_dim: latent, rope_dim: rope } = context.op.attrs as Record<string, number>
  const [q, qRope, kv] = [0, 1, 2].map((index) => bufferOf(context, 'inputs', index)!)
  return attentionOf(context, {
    keyBytes: (latent! + rope!) * DTYPE_BYTES[kv!.dtype],
    headFlops: 2 * (2 * latent! + rope!),
    queryBytes: seenBytes(context, q!) + seenBytes(context, qRope!),
  })
}

function collectiveOf(context: CostContext, collective: Collective, buffer: ProgramBuffer): OpCost {
  const { hardware, program } = context
  const bytes = seenBytes(context, buffer)
  const seconds = collectiveSeconds(hardware, collective, bytes, program.tp)
  const passes = collective === 'all_reduce' ? 2 : 1
  return {
    seconds: hardware.launchSeconds + seconds,
    flops: 0,
    bytes: 2 * bytes,
    networkBytes: (passes * bytes * (program.tp - 1)) / program.tp,
    computeShare: 0,
  }
}

const allReduce: CostFunction = (context) =>
  collectiveOf(context, 'all_reduce', bufferOf(context, 'inputs', 0)!)

const reduceScatter: CostFunction = (context) =>
  collectiveOf(context, 'reduce_scatter', bufferOf(context, 'inputs', 0)!)

const allGather: CostFunction = (context) =>
  collectiveOf(context, 'all_gather', bufferOf(context, 'outputs', 0)!)

/** The sum's rows are normalised in passing: what is left is the residual of the rows a rank owns. */
const allReduceRmsNorm: CostFunction = (context) => {
  const { hardware, program } = context
  const sum = allReduce(context)
  const residual = (2 * seenBytes(context, bufferOf(context, 'inputs', 1)!)) / program.tp
  return {
    ...sum,
    seconds: sum.seconds + residual / hardware.memoryBytesPerSecond,
    bytes: sum.bytes + residual,
  }
}

/** A matmul and the collective over `buffer`, group of rows by group of rows. */
function overlappedOf(context: CostContext, collective: Collective, buffer: ProgramBuffer): OpCost {
  const { hardware, program, op, networkShare } = context
  const ranks = program.tp
  const alone = collectiveOf(context, collective, buffer)
  const product = matmulOf(context)
  const groups = op.attrs.groups as number
  const overlap = {
    matmul: matmulShapeOf(context),
    groups,
    collective,
    rowBytes: colsOf(buffer) * DTYPE_BYTES[buffer.dtype],
    ranks,
    networkShare,
  }
  const secondsWith = (units: number) => overlappedSeconds(hardware, overlap, units)
  return {
    seconds: secondsWith(hardware.units),
    secondsWith,
    flops: product.flops,
    bytes: product.bytes + alone.bytes,
    networkBytes: alone.networkBytes,
    computeShare: 1,
    launches: 2 * groups,
  }
}

/** The sum's own type travels to the other ranks: f32 where it is not rounded. */
const matmulAllReduce: CostFunction = (context) =>
  overlappedOf(context, 'all_reduce', bufferOf(context, 'outputs', 1)!)

const matmulReduceScatter: CostFunction = (context) =>
  overlappedOf(context, 'reduce_scatter', bufferOf(context, 'outputs', 0)!)

const allGatherMatmul: CostFunction = (context) =>
  overlappedOf(context, 'all_gather', bufferOf(context, 'outputs', 0)!)

/** A rank's own rows, or all. */
const addRmsNorm: CostFunction = (context) => {
  const { hardware, op, program } = context
  const whole = streaming(context)
  const owned = op.attrs.owned_groups === undefined ? 1 : 1 / program.tp
  return memoryBound(hardware, whole.bytes * owned)
}

/** Probabilities of every candidate are read a few times over. */
const sample: CostFunction = (context) => {
  const logits = seenBytes(context, bufferOf(context, 'inputs', 0)!)
  return memoryBound(context.hardware, 4 * logits)
}

const nothing: CostFunction = () => NOTHING

const COSTS: Readonly<Record<string, CostFunction | undefined>> = {
  embed,
  rope_table: streaming,
  rms_norm: streaming,
  add_rms_norm: addRmsNorm,
  matmul: matmulOf,
  mean_squares: streaming,
  split_rope_cache: splitRopeCache,
  attention,
  mla_split_rope_cache: streaming,
  head_matmul: matmulOf,
  mla_attention: mlaAttention,
  silu_mul: streaming,
  gelu_mul: streaming,
  gather_rows: gatherRows,
  logits: matmulOf,
  all_gather: allGather,
  sample,
  all_reduce: allReduce,
  reduce_scatter: reduceScatter,
  all_reduce_rms_norm: allReduceRmsNorm,
  all_gather_rows: allGather,
  matmul_all_reduce: matmulAllReduce,
  matmul_reduce_scatter: matmulReduceScatter,
  all_gather_matmul: allGatherMatmul,
  copy: streaming,
  stall: nothing,
  ...EXPERT_COSTS,
}
