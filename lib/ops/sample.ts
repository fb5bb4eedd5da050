/** sample: the next token of each row of logits [R, V], tokens [R] i32; see docs/ops.md. */

import type { OpDraft, OpSpec } from './spec.ts'

export const sampleOp: OpSpec = {
  name: 'sample',
  inputs: ['logits'],
  outputs: ['tokens'],
  attrs: { vocab_size: 'number' },
  collective: false,
  lane: 'memory',
  whole: true,
  check(op) {
    const [logits, tokens] = [op.input(0), op.output(0)]
    const width = op.activation(logits)
    op.dtype(logits, 'f32')
    op.require(logits.shape[0] === 'R', `${logits.name} must have R rows`)
    const vocab = op.number('vocab_size')
    op.require(
      Number.isInteger(vocab) && vocab >= 1 && vocab <= width,
      `vocab_size ${vocab} of ${width} columns`,
    )
    op.dtype(tokens, 'i32')
    op.require(
      tokens.space === 'arena' && tokens.shape.length === 1 && tokens.shape[0] === 'R',
      `${tokens.name} must be [R] in the arena`,
    )
  },
}

export function sample(
  operands: { readonly logits: number; readonly tokens: number },
  attrs: { readonly vocab_size: number },
): OpDraft {
  return {
    kind: 'sample',
    inputs: [operands.logits],
    outputs: [operands.tokens],
    attrs: { ...attrs },
  }
}
