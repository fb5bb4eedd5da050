/**
 * What the ops of routed experts have to do in a model's program. Their buffers are as large as the
 * most that a rank can receive; what a step fills of them follows from the tokens, which choose
 * evenly.
 */

import { DTYPE_BYTES } from '../program/types.ts'
import type { GroupedShape } from './matmul-cost.ts'
import type { CostContext } from './op-cost.ts'

/** Rows that a rank computes: choices of tokens, of experts it has. */
interface ExpertRows {
  readonly tokens: number
  /** Of a token, among all experts. */
  readonly choices: number
  /** Experts of a rank, and their share of all. */
  readonly local: number
  readonly share: number
}

export function expertRows({ program, op, begin, end }: CostContext): ExpertRows {
  const dispatch = program.ops.find(({ kind }) => kind === 'moe_dispatch')!
  const [, ids] = dispatch.inputs
  const offsets = dispatch.outputs[5]!
  const local = (program.buffers[offsets.buffer]!.shape[0] as number) - 1
  const inPart = [...op.inputs, ...op.outputs].some((view) => view?.part !== undefined)
  return {
    // Ops on buffers of fixed size do not say which part is theirs.
    tokens: inPart ? end - begin : (end - begin) / program.parts,
    choices: program.buffers[ids!.buffer]!.shape[1] as number,
    local,
    share: Math.min(1, local / (dispatch.attrs.experts as number)),
  }
}

/** grouped_matmul as models have it: x, offsets, weight, bias. */
export function expertMatmulShape(context: CostContext): GroupedShape {
  const { program, op } = context
  const { tokens, choices, local, share } = expertRows(context)
  const [x, , weight] = op.inputs.map((view) => view && program.buffers[view.buffer]!)
  const y = program.buffers[op.outputs[0]!.buffer]!
  return {
    rows: tokens * choices * share,
    cols: y.shape[1] as number,
    depth: x!.shape[1] as number,
    experts: local,
    choices: choices * share,
    elementBytes: DTYPE_BYTES[x!.dtype],
    weightBytes: DTYPE_BYTES[weight!.dtype],
  }
}

/** Bytes that grouped_glu moves: gate and up in, their product out. */
export function expertGluBytes(context: CostContext): number {
  const { tokens, choices, share } = expertRows(context)
  const y = context.program.buffers[context.op.outputs[0]!.buffer]!
  return 3 * tokens * choices * share * (y.shape[1] as number) * DTYPE_BYTES[y.dtype]
}

/** Bytes of a row of the hidden states for each token: `moe_dispatch` reads x, `moe_combine` writes y. */
function hiddenBytes({ program, op }: CostContext, tokens: number): number {
  const view = op.kind === 'moe_dispatch' ? op.inputs[0]! : op.outputs[0]!
  const { shape, dtype } = program.buffers[view.buffer]!
  return tokens * (shape[1] as number) * DTYPE_BYTES[dtype]
}

/** Tokens go out once and are copied once for each choice. */
export function dispatchBytes(context: CostContext): number {
  const { tokens, choices, share } = expertRows(context)
  return 2 * (1 + choices * share) * hiddenBytes(context, tokens)
}

/** Of moe_combine: rows of experts that come from other ranks, and finished rows that go to them. */
export function combineBytes(context: CostContext) {
  const { tokens, choices } = expertRows(context)
  const hidden = hiddenBytes(context, tokens)
  return { memory: (choices + 1) * hidden, fetched: choices * hidden, stored: hidden }
}
