/**
 * moe_place: the experts of a token's choices become the slots that serve them, by the layer's expert
 * table, which steps change (lib/parallel/balance). The weights are operands only to say which buffers
 * the table governs: their slots are copied from rank to rank.
 */

import { choices, EXPERT_ROW_MULTIPLE } from './experts.ts'
import type { OpDraft, OpSpec } from './spec.ts'

export const moePlaceOp: OpSpec = {
  name: 'moe_place',
  inputs: ['ids', 'gate_up', 'down', 'gate_up_bias?', 'down_bias?'],
  outputs: ['slots'],
  attrs: { table: 'number' },
  collective: false,
  lane: 'memory',
  check(op) {
    const { experts } = op.program.limits
    const table = op.number('table')
    op.require(
      experts !== undefined && Number.isInteger(table) && table >= 0 && table < experts.tables,
      `there is no expert table ${table}`,
    )
    const { slots, positions, choices: k } = experts!
    op.require(
      choices(op, op.input(0), 'i32') === k && choices(op, op.output(0), 'i32') === k,
      `ids and slots must have ${k} choices`,
    )
    for (const input of [1, 2, 3, 4]) {
      const weight = op.optionalInput(input)
      if (weight === undefined) continue
      const rows = weight.shape[0] as number
      op.require(
        weight.space === 'weight' && rows % ((slots / positions) * EXPERT_ROW_MULTIPLE) === 0,
        `${weight.name} must have whole panels for each of ${slots / positions} slots`,
      )
    }
  },
}

export function moePlace(
  operands: {
    readonly ids: number
    readonly gateUp: number
    readonly down: number
    readonly gateUpBias?: number | undefined
    readonly downBias?: number | undefined
    readonly slots: number
  },
  attrs: { readonly table: number },
): OpDraft {
  const { ids, gateUp, down, gateUpBias, downBias, slots } = operands
  return {
    kind: 'moe_place',
    inputs: [ids, gateUp, down, gateUpBias ?? null, downBias ?? null],
    outputs: [slots],
    attrs: { ...attrs },
  }
}
