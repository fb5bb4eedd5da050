/** Reference of moe_route in float64, written from the table of docs/kernels.md. */

import type { RouteAttrs } from '../../lib/ops/moe-route.ts'

export interface Route {
  readonly ids: number[]
  readonly weights: number[]
}

export function route(
  given: ArrayLike<number>,
  k: number,
  attrs: RouteAttrs,
  bias?: ArrayLike<number>,
): Route {
  const logits = Array.from(given, (logit) => (Number.isNaN(logit) ? -Infinity : logit))
  const scores = scoresOf(logits, attrs)
  const choice = scores.map((score, e) =>
    logits[e] === -Infinity ? -Infinity : score + (bias?.[e] ?? 0),
  )
  dropGroups(choice, attrs)
  const order = choice
    .map((value, expert) => ({ value, expert }))
    .filter(({ value }) => value > -Infinity)
    .sort((a, b) => b.value - a.value || a.expert - b.expert)
    .slice(0, k)
  const ids = order.map(({ expert }) => expert)
  let weights = ids.map((id) => scores[id]!)
  if (attrs.score === 'softmax_chosen') weights = softmax(weights)
  else if (attrs.normalise) {
    const total = weights.reduce((sum, weight) => sum + weight, 0)
    weights = weights.map((weight) => weight / total)
  }
  weights = weights.map((weight) => weight * (attrs.scale ?? 1))
  while (ids.length < k) {
    ids.push(-1)
    weights.push(0)
  }
  return { ids, weights }
}

function scoresOf(logits: number[], { score }: RouteAttrs): number[] {
  if (score === 'softmax') return softmax(logits)
  if (score === 'sigmoid') return logits.map((logit) => 1 / (1 + Math.exp(-logit)))
  return logits
}

function softmax(values: number[]): number[] {
  const largest = Math.max(...values)
  if (largest === -Infinity) return values.map(() => 0)
  const powers = values.map((value) => Math.exp(value - largest))
  const total = powers.reduce((sum, power) => sum + power, 0)
  return powers.map((power) => power / total)
}

function dropGroups(choice: number[], attrs: RouteAttrs): void {
  const { groups = 1, top_groups: kept = groups, group_score: worth = 'max' } = attrs
  const size = choice.length / groups
  const worths = Array.from({ length: groups }, (_, group) => {
    const best = choice.slice(group * size, (group + 1) * size).sort((a, b) => b - a)
    if (worth === 'max' || best[1] === -Infinity) return best[0]!
    return best[0]! + best[1]!
  })
  const order = worths.map((_, group) => group).sort((a, b) => worths[b]! - worths[a]! || a - b)
  for (const group of order.slice(kept)) choice.fill(-Infinity, group * size, (group + 1) * size)
}
