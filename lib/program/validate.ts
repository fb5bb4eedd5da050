/**
 * Structural validation of a program: sizes, references, signatures, shapes. ERR_PROGRAM says which
 * buffer or op is wrong. That conflicting byte ranges are ordered is checked at load, natively.
 */

import { EngineError } from '../errors.ts'
import { opSpec } from '../ops/index.ts'
import { OpOperands, type OpSpec } from '../ops/spec.ts'
import { ARENA_ALIGNMENT } from './memory.ts'
import { MAX_PARTS } from './passes/nano-batch.ts'
import { hasParts, maxBytes } from './shapes.ts'
import {
  type AttrValue,
  DTYPE_BYTES,
  type ExpertLimits,
  LANES,
  MAX_EXPERT_SLOTS,
  type Program,
  type ProgramBuffer,
  type ProgramLimits,
  type ProgramOp,
  type View,
} from './types.ts'

const MAX_WORLD = 64
const MAX_BYTES = 2 ** 44

function fail(message: string, op?: string): EngineError {
  return new EngineError('ERR_PROGRAM', message, op === undefined ? {} : { op })
}

function requireInteger(value: number, what: string, min: number, max: number): void {
  if (!Number.isSafeInteger(value) || value < min || value > max) {
    throw fail(`${what} is ${value}, must be ${min} to ${max}`)
  }
}

/** Throws ERR_PROGRAM unless the program is well formed. */
export function validateProgram(program: Program): void {
  if (program.version !== 1) throw fail(`unknown program version ${program.version}`)
  requireInteger(program.world, 'world', 1, MAX_WORLD)
  requireInteger(program.tp, 'tp', 1, program.world)
  if (program.world % program.tp !== 0) throw fail(`tp ${program.tp} of world ${program.world}`)
  requireInteger(program.parts, 'parts', 1, MAX_PARTS)
  requireInteger(program.arenaBytes, 'arenaBytes', 0, MAX_BYTES)
  const share = program.networkShare ?? 0.5
  if (!(share > 0 && share < 1))
    throw fail(`networkShare is ${share}, between 0 and 1 (exclusive) works`)
  validateLimits(program.limits)
  const positions = program.limits.experts?.positions ?? 1
  if (program.world % positions !== 0) {
    throw fail(`${positions} positions of experts in world ${program.world}`)
  }
  const names = new Set<string>()
  for (const buffer of program.buffers) {
    if (names.has(buffer.name)) throw fail(`two buffers are called ${buffer.name}`)
    names.add(buffer.name)
    validateBuffer(program, buffer)
  }
  const labels = new Set<string>()
  program.ops.forEach((op, index) => {
    if (labels.has(op.label)) throw fail(`two ops are labelled ${op.label}`, op.label)
    labels.add(op.label)
    validateOp(program, op, index)
  })
}

function validateLimits(limits: ProgramLimits): void {
  requireInteger(limits.maxTokens, 'maxTokens', 1, 2 ** 22)
  requireInteger(limits.maxRows, 'maxRows', 0, 2 ** 22)
  requireInteger(limits.maxSeqs, 'maxSeqs', 0, 2 ** 22)
  requireInteger(limits.numSlots, 'numSlots', 0, 2 ** 16)
  requireInteger(limits.vocabSize, 'vocabSize', 0, 2 ** 30)
  requireInteger(limits.numBlocks, 'numBlocks', 0, 2 ** 30)
  requireInteger(limits.blockSize, 'blockSize', limits.numBlocks > 0 ? 1 : 0, 2 ** 16)
  const mostOnHost = limits.numBlocks > 0 ? 2 ** 30 : 0
  requireInteger(limits.numHostBlocks ?? 0, 'numHostBlocks', 0, mostOnHost)
  requireInteger(limits.maxBlocksPerSeq, 'maxBlocksPerSeq', 0, 2 ** 30)
  if (limits.experts !== undefined) validateExperts(limits.experts)
  // KV slots and positions are int32 words of a step.
  const blocks = Math.max(limits.numBlocks, limits.maxBlocksPerSeq)
  requireInteger(blocks * limits.blockSize, 'KV slots', 0, 2 ** 31 - 1)
}

function validateExperts({ tables, count, slots, positions, choices }: ExpertLimits): void {
  requireInteger(tables, 'experts.tables', 1, 1024)
  requireInteger(count, 'experts.count', 1, 1024)
  requireInteger(positions, 'experts.positions', 1, 64)
  requireInteger(slots, 'experts.slots', positions * Math.ceil(count / positions), MAX_EXPERT_SLOTS)
  requireInteger(choices, 'experts.choices', 1, count)
  if (slots % positions !== 0) throw fail(`${slots} slots of ${positions} positions`)
}

function validateBuffer(program: Program, buffer: ProgramBuffer): void {
  const { name, shape, space, layout, offset } = buffer
  if (!Object.hasOwn(DTYPE_BYTES, buffer.dtype)) throw fail(`${name} has an unknown dtype`)
  if (shape.length < 1 || shape.length > 8) throw fail(`${name} has ${shape.length} dimensions`)
  shape.forEach((dim, index) => {
    if (typeof dim === 'number')
      requireInteger(dim, `dimension ${index} of ${name}`, 1, 2 ** 31 - 1)
    else if (index > 0) throw fail(`${name}: only the first dimension may be a symbol`)
    else if (!['T', 'R', 'S'].includes(dim)) throw fail(`${name} has an unknown symbol`)
    else if (space !== 'arena') throw fail(`${name} is no activation and has a symbolic size`)
  })
  const bytes = maxBytes(buffer, program.limits)
  requireInteger(bytes, `bytes of ${name}`, 0, MAX_BYTES)
  if (layout === 'matmul' && (space !== 'weight' || shape.length !== 2)) {
    throw fail(`${name} has layout matmul and must be a weight matrix`)
  }
  if (space === 'kv') validateKv(buffer, program.limits)
  if (space !== 'arena') {
    if (offset !== undefined) throw fail(`${name} is not in the arena and has an offset`)
    return
  }
  if (offset === undefined) return
  requireInteger(offset, `offset of ${name}`, 0, program.arenaBytes - bytes)
  if (offset % ARENA_ALIGNMENT !== 0) throw fail(`${name} is not ${ARENA_ALIGNMENT}-byte aligned`)
}

function validateKv({ name, shape }: ProgramBuffer, limits: ProgramLimits): void {
  const fits =
    shape.length === 5 &&
    shape[0] === limits.numBlocks &&
    (shape[1] === 1 || shape[1] === 2) &&
    shape[3] === limits.blockSize
  if (!fits) throw fail(`${name} must be [numBlocks, 1 or 2, kvHeads, blockSize, headDim]`)
}

function validateOp(program: Program, op: ProgramOp, index: number): void {
  const spec = opSpec(op.kind)
  const where = `op ${op.label}`
  if (!LANES.includes(op.lane)) throw fail(`${where}: unknown lane ${op.lane}`, op.label)
  if (op.inputs.length !== spec.inputs.length || op.outputs.length !== spec.outputs.length) {
    throw fail(`${where}: ${op.kind} has other operands`, op.label)
  }
  spec.inputs.forEach((name, i) => {
    const view = op.inputs[i]!
    if (view !== null) validateView(program, op, view, true)
    else if (!name.endsWith('?')) throw fail(`${where}: input ${name} is missing`, op.label)
  })
  for (const view of op.outputs) {
    validateView(program, op, view, false)
    if (program.buffers[view.buffer]!.space === 'weight') {
      throw fail(`${where} writes a weight`, op.label)
    }
  }
  validateParts(program, op, spec)
  validateAttrs(op, spec)
  for (const [output, input] of Object.entries(spec.inPlace ?? {})) {
    const [written, read] = [op.outputs[Number(output)]!, op.inputs[input]!]
    if (written.buffer !== read.buffer || written.part !== read.part) {
      throw fail(`${where}: output ${output} must be input ${input}, in place`, op.label)
    }
  }
  spec.check(new OpOperands(program, op))
  let previous = -1
  for (const wait of op.waits) {
    requireInteger(wait, `${where}: a wait`, previous + 1, index - 1)
    if (program.ops[wait]!.lane === op.lane) throw fail(`${where} waits for its own lane`, op.label)
    previous = wait
  }
}

function validateView(program: Program, op: ProgramOp, view: View, isInput: boolean): void {
  const where = `op ${op.label}`
  requireInteger(view.buffer, `${where}: a buffer`, 0, program.buffers.length - 1)
  const buffer = program.buffers[view.buffer]!
  if (view.upTo && (!isInput || view.part === undefined || buffer.space !== 'kv')) {
    throw fail(`${where}: upTo is for reads of a KV cache's part`, op.label)
  }
  if (view.part === undefined) return
  requireInteger(view.part, `${where}: part of ${buffer.name}`, 0, program.parts - 1)
  if (!hasParts(buffer)) throw fail(`${where}: ${buffer.name} has no parts`, op.label)
}

/** All operands with token rows are seen in the op's one part, or all of them whole. */
function validateParts(program: Program, op: ProgramOp, spec: OpSpec): void {
  const views = [...op.inputs.filter((view) => view !== null), ...op.outputs]
  const partial = views.filter((view) => hasParts(program.buffers[view.buffer]!))
  const [part] = partial.map((view) => view.part)
  if (partial.some((view) => view.part !== part)) {
    throw fail(`op ${op.label} sees different parts of its operands`, op.label)
  }
  if (spec.whole && part !== undefined) {
    throw fail(`op ${op.label}: ${op.kind} works on all rows, not on a part`, op.label)
  }
}

function validateAttrs(op: ProgramOp, spec: OpSpec): void {
  for (const name of Object.keys(op.attrs)) {
    if (!Object.hasOwn(spec.attrs, name)) {
      throw fail(`op ${op.label}: ${op.kind} has no attribute ${name}`, op.label)
    }
  }
  for (const [name, type] of Object.entries(spec.attrs)) {
    const value = op.attrs[name]
    if (value === undefined) {
      if (type.endsWith('?')) continue
      throw fail(`op ${op.label}: attribute ${name} is missing`, op.label)
    }
    if (!hasType(value, type.replace('?', ''))) {
      throw fail(`op ${op.label}: attribute ${name} must be of type ${type}`, op.label)
    }
  }
}

function hasType(value: AttrValue, type: string): boolean {
  if (type === 'number') return Number.isFinite(value)
  if (type === 'numbers') return Array.isArray(value) && value.every(Number.isFinite)
  return typeof value === type
}
