/** Traces of routing that callers name: bounded, and of the model that they are used with. */

import { EngineError } from '../errors.ts'
import { type Model, numExperts } from '../models/index.ts'
import { type ExpertTrace, parseTrace } from '../parallel/balance/trace.ts'
import { readBytes, withFile } from '../weights/json.ts'

const MAX_TRACE_BYTES = 2 ** 28

/** Experts of a layer, and the layers that have some. ERR_UNSUPPORTED_OPTION for a model without. */
export function requireExperts({ architecture, spec }: Model): { experts: number; layers: number } {
  const counts = numExperts(spec)
  const [experts] = counts
  if (experts === undefined)
    throw new EngineError(
      'ERR_UNSUPPORTED_OPTION',
      `${architecture} has no experts to balance; leave out the options of experts`,
    )
  return { experts, layers: counts.length }
}

/** ERR_IO where the file cannot be read, ERR_USAGE where it holds no trace of this model. */
export function readExpertTrace(file: string, model: Model): ExpertTrace {
  const { experts, layers } = requireExperts(model)
  const bytes = withFile(file, (descriptor, size) => {
    if (size > MAX_TRACE_BYTES)
      throw new EngineError('ERR_USAGE', `${file} has ${size} bytes, more than ${MAX_TRACE_BYTES}`)
    return readBytes(descriptor, file, 0, size)
  })
  const trace = parseTrace(bytes.toString('utf8'), file)
  if (trace.experts !== experts || trace.layers !== layers)
    throw new EngineError(
      'ERR_USAGE',
      `${file} is of ${trace.layers} layers with ${trace.experts} experts, the model has ${layers} with ${experts}`,
    )
  return trace
}
