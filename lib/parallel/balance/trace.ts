/**
 * Traces of routing: which experts each token chose in every layer, as a file that placements are made
 * from (`nanoweave inspect MODEL --experts --save-trace FILE` records one). JSON, the choices as base64 of
 * little-endian int16. Pure.
 */

import { EngineError } from '../../errors.ts'

export interface ExpertTrace {
  readonly layers: number
  readonly experts: number
  /** Of a token in a layer. */
  readonly choices: number
  /** [tokens, layers, choices], -1: none. */
  readonly chosen: Int16Array
}

const VERSION = 1
const MAX_LAYERS = 1024

export function numTraceTokens({ layers, choices, chosen }: ExpertTrace): number {
  return chosen.length / (layers * choices)
}

/** By layer, then expert: how often it was chosen. */
export function traceLoads({ layers, experts, choices, chosen }: ExpertTrace): number[][] {
  const loads = Array.from({ length: layers }, () => new Array<number>(experts).fill(0))
  chosen.forEach((expert, at) => {
    if (expert >= 0) loads[Math.floor(at / choices) % layers]![expert]!++
  })
  return loads
}

export function formatTrace({ layers, experts, choices, chosen }: ExpertTrace): string {
  const bytes = new Uint8Array(2 * chosen.length)
  const view = new DataView(bytes.buffer)
  chosen.forEach((expert, at) => {
    view.setInt16(2 * at, expert, true)
  })
  const text = Buffer.from(bytes.buffer).toString('base64')
  return `${JSON.stringify({ version: VERSION, layers, experts, choices, chosen: text })}\n`
}

/** ERR_USAGE says what is wrong with the text; `name` is where it came from. */
export function parseTrace(text: string, name: string): ExpertTrace {
  const refuse = (why: string): never => {
    throw new EngineError('ERR_USAGE', `${name} is no trace of experts: ${why}`)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    refuse('it is not JSON')
  }
  if (typeof value !== 'object' || value === null) refuse('it is not an object')
  const { version, layers, experts, choices, chosen } = value as Record<string, unknown>
  if (version !== VERSION) refuse(`its version is ${String(version)}, not ${VERSION}`)
  const whole = (size: unknown, most: number, what: string): number =>
    typeof size === 'number' && Number.isInteger(size) && size >= 1 && size <= most
      ? size
      : refuse(`${what} must be a whole number from 1 to ${most}`)
  const sizes = {
    layers: whole(layers, MAX_LAYERS, 'layers'),
    experts: whole(experts, 1024, 'experts'),
    choices: whole(choices, 32, 'choices'),
  }
  if (typeof chosen !== 'string') return refuse('chosen must be base64')
  const bytes = Buffer.from(chosen, 'base64')
  const row = sizes.layers * sizes.choices
  if (bytes.length === 0 || bytes.length % (2 * row) !== 0)
    refuse(`chosen has ${bytes.length} bytes, not a multiple of ${2 * row}`)
  const words = new Int16Array(bytes.length / 2)
  words.forEach((_, at) => {
    const expert = bytes.readInt16LE(2 * at)
    if (expert < -1 || expert >= sizes.experts) refuse(`it has an expert ${expert}`)
    words[at] = expert
  })
  return { ...sizes, chosen: words }
}
