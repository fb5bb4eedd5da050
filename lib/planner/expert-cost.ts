/**
 * Time of the ops of routed experts, alone on the device, for tokens that choose evenly at random. A
 * program does not say how many experts there are beside its own: its dispatch does.
 */

import { DTYPE_BYTES, type ProgramBuffer } from '../program/types.ts'
import {
  bufferOf,
  type CostContext,
  type CostFunction,
  colsOf,
  memoryBound,
  seenBytes,
} from './cost-context.ts'
import { groupedMatmulBytes, groupedMatmulSeconds } from './matmul-cost.ts'
import { collectiveSeconds, peerSeconds } from './network-cost.ts'

/** What a rank's share of the experts is asked for in a step. */
interface ExpertShare {
  /** Experts of a rank. */
  readonly local: number
  /** Of a token; a rank with some of the experts computes its share of them. */
  readonly choices: number
  /** Tokens of all attention groups. */
  readonly tokens: number
}

/** `offsets`: input `index` of the op, [local experts + 1], written by its dispatch. */
function shareOf(context: CostContext, index: number): ExpertShare {
  const { program, op, begin, end } = context
  const offsets = op.inputs[index]!.buffer
  const dispatch = program.ops.find(({ outputs }) => outputs[5]?.buffer === offsets)!
  const choices = colsOf(program.buffers[dispatch.inputs[1]!.buffer]!)
  return {
    local: (program.buffers[offsets]!.shape[0] as number) - 1,
    choices: choices / (dispatch.attrs.ep as number),
    tokens: (end - begin) * (program.world / program.tp),
  }
}

/** Bytes of a row. */
function rowBytes(buffer: ProgramBuffer): number {
  return colsOf(buffer) * DTYPE_BYTES[buffer.dtype]
}

/** Scores, ids and weights of every token. */
const moeRoute: CostFunction = (context) => {
  const logits = seenBytes(context, bufferOf(context, 'inputs', 0)!)
  const ids = seenBytes(context, bufferOf(context, 'outputs', 0)!)
  return memoryBound(context.hardware, logits + 2 * ids)
}

/** Ids become slots. */
const moePlace: CostFunction = (context) =>
  memoryBound(context.hardware, 2 * seenBytes(context, bufferOf(context, 'inputs', 0)!))

/** Rows come from the other attention groups, and are copied once for each choice that is local. */
const moeDispatch: CostFunction = (context) => {
  const { hardware, program, op, begin, end } = context
  const x = bufferOf(context, 'inputs', 0)!
  const groups = program.world / program.tp
  const received = groups * (end - begin) * rowBytes(x)
  const choices = colsOf(bufferOf(context, 'inputs', 1)!) / (op.attrs.ep as number)
  const local = memoryBound(hardware, received * (1 + 2 * choices))
  return {
    ...local,
    seconds: local.seconds + collectiveSeconds(hardware, 'all_gather', received, groups),
    networkBytes: (received * (groups - 1)) / groups,
  }
}

const groupedMatmul: CostFunction = (context) => {
  const { hardware } = context
  const x = bufferOf(context, 'inputs', 0)!
  const weight = bufferOf(context, 'inputs', 2)!
  const { local, choices, tokens } = shareOf(context, 1)
  const shape = {
    rows: tokens * choices,
    cols: (weight.shape[0] as number) / local,
    depth: colsOf(weight),
    experts: local,
    choices,
    elementBytes: DTYPE_BYTES[x.dtype],
    weightBytes: DTYPE_BYTES[weight.dtype],
  }
  const secondsWith = (units: number) =>
    hardware.launchSeconds + groupedMatmulSeconds(hardware, shape, units)
  return {
    seconds: secondsWith(hardware.units),
    secondsWith,
    flops: 2 * shape.rows * shape.cols * shape.depth,
    bytes: groupedMatmulBytes(shape),
    networkBytes: 0,
    computeShare: 1,
  }
}

const groupedGlu: CostFunction = (context) => {
  const { choices, tokens } = shareOf(context, 1)
  const [gateUp, y] = [bufferOf(context, 'inputs', 0)!, bufferOf(context, 'outputs', 0)!]
  return memoryBound(context.hardware, tokens * choices * (rowBytes(gateUp) + rowBytes(y)))
}

/**
 * A rank fetches what the experts made of the rows it owns, every choice from each rank that has a
 * slice of the expert, and stores the sums to its group.
 */
const moeCombine: CostFunction = (context) => {
  const { hardware, program, op, begin, end } = context
  const y = bufferOf(context, 'outputs', 0)!
  const { world, tp } = program
  const choices = colsOf(bufferOf(context, 'inputs', 2)!)
  const slices = world / (op.attrs.ep as number)
  const rows = (end - begin) * rowBytes(y)
  const fetched = (rows / tp) * choices * slices
  const remote = (fetched * (world - 1)) / world
  const stored = (rows * (tp - 1)) / tp
  const local = memoryBound(hardware, fetched + rows)
  return {
    ...local,
    seconds:
      local.seconds +
      peerSeconds(hardware, remote) +
      collectiveSeconds(hardware, 'all_gather', rows, tp),
    networkBytes: remote + stored,
  }
}

export const EXPERT_COSTS: Readonly<Record<string, CostFunction>> = {
  moe_route: moeRoute,
  moe_place: moePlace,
  moe_dispatch: moeDispatch,
  grouped_matmul: groupedMatmul,
  grouped_glu: groupedGlu,
  moe_combine: moeCombine,
}
