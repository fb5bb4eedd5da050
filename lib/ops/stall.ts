/** stall: one rank sleeps, or never comes back (ms < 0). Stands for a late or dead rank in tests. */

import type { OpDraft, OpSpec } from './spec.ts'

export const stallOp: OpSpec = {
  name: 'stall',
  inputs: ['x'],
  outputs: ['x'],
  attrs: { rank: 'number', ms: 'number' },
  collective: false,
  lane: 'memory',
  inPlace: { 0: 0 },
  check(op) {
    const rank = op.number('rank')
    const { world } = op.program
    op.require(Number.isInteger(rank) && rank >= 0 && rank < world, `rank ${rank} of ${world}`)
    op.require(op.number('ms') <= 60_000, 'sleeps at most a minute')
  },
}

export function stall(
  operands: { readonly x: number },
  attrs: { readonly rank: number; readonly ms: number },
): OpDraft {
  return { kind: 'stall', inputs: [operands.x], outputs: [operands.x], attrs: { ...attrs } }
}
