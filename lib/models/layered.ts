/** The shallow programs of a model that planning and simulation work with. */

import type { LayeredProgram } from '../program/layered.ts'
import { buildModel, type SerialOptions } from './index.ts'
import type { AttentionSpec } from './spec.ts'
import type { Model } from './types.ts'

/** A pipeline of nano-batches is in its stride after so many layers. */
const MIN_PERIOD = 3

/** Serial programs of a few layers; throws what buildModel throws. */
export function buildLayered(model: Model, options: SerialOptions): LayeredProgram {
  const { layers } = model.spec
  const period = Math.min(layers.length, periodOf(model))
  const build = (count: number) => {
    const taken = Array.from({ length: count }, (_, layer) => layers[layer % layers.length]!)
    const shallow = { ...model, spec: { ...model.spec, layers: taken } }
    // The first layers may have no experts to be spread.
    const hasExperts = taken.some(({ feedForward }) => feedForward.kind === 'experts')
    return buildModel(shallow, hasExperts ? options : { ...options, expertParallel: 1 }).program
  }
  return { short: build(period), long: build(2 * period), period, numLayers: layers.length }
}

/** After how many layers windows and rotations repeat, and at least MIN_PERIOD. */
function periodOf({ spec: { layers } }: Model): number {
  const windowOf = (attention: AttentionSpec) =>
    attention.kind === 'grouped' ? attention.window : undefined
  const same = (a: AttentionSpec, b: AttentionSpec) =>
    windowOf(a) === windowOf(b) && a.rope === b.rope
  for (let period = 1; period < layers.length; period++) {
    const repeats = layers.every(
      (layer, i) => i < period || same(layer.attention, layers[i - period]!.attention),
    )
    if (repeats) return period * Math.ceil(MIN_PERIOD / period)
  }
  return layers.length
}
