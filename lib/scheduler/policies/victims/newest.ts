/**
 * The newest of the lowest priority: it has lost the least. How it gives up its blocks is a matter of
 * what costs less, or fixed.
 */

import type { SequenceView, VictimPolicy } from '../../policy.ts'

function pickNewest(candidates: readonly SequenceView[]): number {
  let worst = candidates.length - 1
  for (let i = worst - 1; i >= 0; i--) {
    const a = candidates[i]
    const b = candidates[worst]
    if (a.priority < b.priority || (a.priority === b.priority && a.id > b.id)) worst = i
  }
  return worst
}

/** Computes again below the break-even of copying. */
export const cheapest: VictimPolicy = {
  name: 'auto',
  pick: pickNewest,
  form: ({ recomputeMs, copyMs }) => (recomputeMs <= copyMs ? 'recompute' : 'swap'),
}

export const recompute: VictimPolicy = {
  name: 'recompute',
  pick: pickNewest,
  form: () => 'recompute',
}

export const swap: VictimPolicy = {
  name: 'swap',
  pick: pickNewest,
  form: () => 'swap',
}
