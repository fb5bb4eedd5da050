/**
 * Experts in a program for planning: every layer's gate_up, activation and down become routing,
 * dispatch, grouped matmuls and the weighted sum, for presets that name experts beside a dense config.
 * Only costs and hazards are meant: such a program is never loaded.
 */

import { EngineError } from '../errors.ts'
import type { Program, ProgramBuffer, ProgramOp } from '../program/types.ts'

export interface ExpertLayout {
  readonly count: number
  /** Experts that a token chooses. */
  readonly choices: number
  readonly intermediateSize: number
  /** True: whole experts dealt over the ranks. False: every expert split over them. */
  readonly overRanks: boolean
}

/** A serial dense program with experts in place of its feed-forwards. */
export function withExperts(program: Program, layout: ExpertLayout): Program {
  const buffers = [...program.buffers]
  const ops: ProgramOp[] = []
  for (const op of program.ops) {
    const layer = /^(layers\.\d+)\.(gate_up|act|down)$/.exec(op.label)
    if (layer === null) {
      ops.push(op)
      continue
    }
    // All three are replaced at the place of the first.
    if (layer[2] !== 'gate_up') continue
    const down = program.ops.find(({ label }) => label === `${layer[1]}.down`)
    if (down === undefined) throw new EngineError('ERR_INTERNAL', `${layer[1]} has no down`)
    const [x, sum] = [op.inputs[0]!.buffer, down.outputs[0]!.buffer]
    ops.push(...expertOps(program, buffers, layer[1]!, x, sum, layout))
  }
  return { ...program, buffers, ops }
}

function expertOps(
  program: Program,
  buffers: ProgramBuffer[],
  base: string,
  x: number,
  sum: number,
  { count, choices, intermediateSize, overRanks }: ExpertLayout,
): ProgramOp[] {
  const { dtype, shape } = program.buffers[x]!
  const hidden = shape[1] as number
  const ranks = program.tp
  const experts = overRanks ? Math.ceil(count / ranks) : count
  const width = overRanks ? intermediateSize : Math.ceil(intermediateSize / ranks)
  // A rank with some of the experts computes its share of the choices.
  const own = overRanks ? choices / ranks : choices
  const arena = (name: string, cols: number) =>
    buffers.push({ name: `${base}.${name}`, space: 'arena', dtype, shape: ['T', cols] }) - 1
  const weight = (name: string, rows: number, cols: number) =>
    buffers.push({
      name: `${base}.${name}.weight`,
      space: 'weight',
      dtype,
      shape: [rows, cols],
      layout: 'matmul',
    }) - 1
  const op = (
    kind: string,
    lane: ProgramOp['lane'],
    inputs: readonly number[],
    output: number,
  ): ProgramOp => ({
    kind,
    label: `${base}.${kind}${kind === 'grouped_matmul' ? `.${buffers[output]!.name}` : ''}`,
    lane,
    inputs: inputs.map((buffer) => ({ buffer })),
    outputs: [{ buffer: output }],
    attrs: kind === 'grouped_matmul' ? { experts, choices: own } : {},
    waits: [],
  })
  const scores = arena('scores', count)
  const rows = arena('rows', own * hidden)
  const gateUp = arena('gate_up', own * 2 * width)
  const act = arena('act', own * width)
  const out = arena('expert_out', own * hidden)
  return [
    op('moe_route', 'compute', [x, weight('router', count, hidden)], scores),
    op('moe_dispatch', 'memory', [x, scores], rows),
    op('grouped_matmul', 'compute', [rows, weight('gate_up', experts * 2 * width, hidden)], gateUp),
    op('silu_mul', 'memory', [gateUp], act),
    op('grouped_matmul', 'compute', [act, weight('down', experts * hidden, width)], out),
    op('moe_combine', 'memory', [out, scores], sum),
  ]
}
