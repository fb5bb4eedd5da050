/**
 * Checkpoints saved with the experts of a layer in one tensor, [experts, 2 · width, hidden] and
 * [experts, hidden, width], as transformers 5 has them in memory, in place of the published tensor
 * for each expert. The same for every family: only names change.
 */

import type { TensorIndex } from '../weights/safetensors.ts'
import type { DecoderSpec, ExpertsSpec, LinearSpec } from './spec.ts'

/** The spec with fused tensors wherever `tensors` has them. */
export function withFusedExperts(spec: DecoderSpec, { tensors }: TensorIndex): DecoderSpec {
  const layers = spec.layers.map((layer) => {
    const { feedForward } = layer
    if (feedForward.kind !== 'experts') return layer
    const base = basesOf(feedForward).find((name) => tensors.has(`${name}experts.gate_up_proj`))
    return base === undefined ? layer : { ...layer, feedForward: fused(feedForward, base) }
  })
  return { ...spec, layers }
}

/** What the names of a block begin with: as published, and Mixtral's under its new name. */
function basesOf({ gates: [gate] }: ExpertsSpec): string[] {
  const [, base] = /^(.*\.)experts\.0\.\w+\.weight$/.exec(gate!.tensor) ?? []
  return base === undefined ? [] : [base, base.replace('.block_sparse_moe.', '.mlp.')]
}

function fused(block: ExpertsSpec, base: string): ExpertsSpec {
  const { gates, intermediateSize: count } = block
  const matrices = (tensor: string, start?: number): LinearSpec[] =>
    gates.map((_, plane) => ({
      tensor: `${base}experts.${tensor}`,
      plane,
      ...(start !== undefined && { rows: { start, count } }),
    }))
  return {
    ...block,
    router: { ...block.router, tensor: `${base}gate.weight` },
    gates: matrices('gate_up_proj', 0),
    ups: matrices('gate_up_proj', count),
    downs: matrices('down_proj'),
  }
}
