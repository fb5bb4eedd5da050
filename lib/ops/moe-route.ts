/**
 * moe_route: which experts a token goes to and with what weights, from the router's logits. Scores,
 * choice and weights of all families; docs/ops.md has the contract on NaN, ties and padding.
 */

import { choices, MAX_CHOICES, MAX_EXPERTS } from './experts.ts'
import { definedAttrs, type OpDraft, type OpSpec } from './spec.ts'

/** `softmax` and `sigmoid` over all experts; `softmax_chosen`: logits choose, softmax over the chosen. */
export type RouteScore = 'softmax' | 'sigmoid' | 'softmax_chosen'
/** What a group of experts is worth: its best score, or the sum of its two best. */
export type RouteGroupScore = 'max' | 'top2'

export interface RouteAttrs {
  readonly score: RouteScore
  /** Weights are divided by their sum. */
  readonly normalise?: boolean | undefined
  /** Multiplies the weights. */
  readonly scale?: number | undefined
  readonly groups?: number | undefined
  /** Groups that a token may choose from. */
  readonly top_groups?: number | undefined
  readonly group_score?: RouteGroupScore | undefined
}

export const moeRouteOp: OpSpec = {
  name: 'moe_route',
  inputs: ['logits', 'bias?'],
  outputs: ['ids', 'weights'],
  attrs: {
    score: 'string',
    normalise: 'boolean?',
    scale: 'number?',
    groups: 'number?',
    top_groups: 'number?',
    group_score: 'string?',
  },
  collective: false,
  lane: 'memory',
  check(op) {
    const logits = op.input(0)
    const experts = op.activation(logits)
    op.dtype(logits, 'f32')
    op.tokenRows(logits)
    op.require(experts <= MAX_EXPERTS, `more than ${MAX_EXPERTS} experts`)
    op.weightVector(op.optionalInput(1), experts)
    const k = choices(op, op.output(0), 'i32')
    op.require(choices(op, op.output(1), 'f32') === k, 'ids and weights differ in choices')
    op.require(k <= Math.min(experts, MAX_CHOICES), `${k} choices of ${experts} experts`)
    const { score, group_score: groupScore = 'max' } = op.op.attrs
    op.require(
      score === 'softmax' || score === 'sigmoid' || score === 'softmax_chosen',
      `score is ${score}`,
    )
    op.require(groupScore === 'max' || groupScore === 'top2', `group_score is ${groupScore}`)
    const groups = op.has('groups') ? op.size('groups') : 1
    op.require(experts % groups === 0, `${experts} experts in ${groups} groups`)
    const topGroups = op.has('top_groups') ? op.size('top_groups') : groups
    op.require(topGroups <= groups, `top_groups ${topGroups} of ${groups}`)
    op.require(
      k <= topGroups * (experts / groups),
      `${k} choices of ${topGroups} groups of ${experts / groups} experts`,
    )
    op.require(groupScore === 'max' || experts / groups >= 2, 'groups have fewer than two experts')
  },
}

export function moeRoute(
  operands: {
    readonly logits: number
    readonly bias?: number | undefined
    readonly ids: number
    readonly weights: number
  },
  attrs: RouteAttrs,
): OpDraft {
  return {
    kind: 'moe_route',
    inputs: [operands.logits, operands.bias ?? null],
    outputs: [operands.ids, operands.weights],
    attrs: definedAttrs({ ...attrs }),
  }
}
