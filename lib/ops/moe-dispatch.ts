/**
 * moe_dispatch: tokens of all attention groups to the ranks of their experts. Every rank of a group
 * sends to one rank of each group, into a region that only it writes; the receiver sorts rows by
 * (expert, source group, token).
 */

import { choices, expertLayout, expertOffsets, fixedMatrix } from './experts.ts'
import type { OpDraft, OpOperands, OpSpec } from './spec.ts'

/** Rows of all regions that a rank receives into: groups · maxTokens. */
export function receivedRows({ program }: Pick<OpOperands, 'program'>): number {
  return (program.world / program.tp) * program.limits.maxTokens
}

export const moeDispatchOp: OpSpec = {
  name: 'moe_dispatch',
  inputs: ['x', 'ids'],
  outputs: ['hidden', 'rx_ids', 'counts', 'rows', 'grouped', 'offsets'],
  attrs: { experts: 'number', ep: 'number' },
  collective: true,
  lane: 'network',
  perPart: true,
  check(op) {
    const { experts, ep } = expertLayout(op)
    const x = op.input(0)
    const width = op.activation(x)
    op.tokenRows(x)
    const k = choices(op, op.input(1), 'i32')
    const received = receivedRows(op)
    const [hidden, ids, counts, rows, grouped, offsets] = [0, 1, 2, 3, 4, 5].map((i) =>
      op.output(i),
    )
    const expect = (buffer: typeof x, count: number, cols: number, dtype: typeof x.dtype) => {
      const [actual] = fixedMatrix(op, buffer, cols)
      op.require(actual === count, `${buffer.name} must have ${count} rows`)
      op.dtype(buffer, dtype)
    }
    expect(hidden!, received, width, x.dtype)
    expect(ids!, received, k, 'i32')
    expect(counts!, 1, op.program.world / op.program.tp, 'i32')
    expect(rows!, received, k, 'i32')
    expect(grouped!, received * k, width, x.dtype)
    const local = Math.ceil(experts / ep)
    op.require(expertOffsets(op, offsets!) === local, `offsets must be for ${local} experts`)
  },
}

export interface DispatchBuffers {
  /** [groups · maxTokens, hidden], as sent. */
  readonly hidden: number
  /** [groups · maxTokens, choices] */
  readonly rxIds: number
  /** [1, groups] rows that each group sent. */
  readonly counts: number
  /** [groups · maxTokens, choices] row in `grouped`, −1: not an expert of this rank. */
  readonly rows: number
  /** [groups · maxTokens · choices, hidden] */
  readonly grouped: number
  /** [local experts + 1] */
  readonly offsets: number
}

export function moeDispatch(
  operands: { readonly x: number; readonly ids: number } & DispatchBuffers,
  attrs: { readonly experts: number; readonly ep: number },
): OpDraft {
  const { x, ids, hidden, rxIds, counts, rows, grouped, offsets } = operands
  return {
    kind: 'moe_dispatch',
    inputs: [x, ids],
    outputs: [hidden, rxIds, counts, rows, grouped, offsets],
    attrs: { ...attrs },
  }
}
