/**
 * What an op is, to the control plane: its signature (equal to the native one), the lane it usually
 * runs on, and the rules for its operands. Each op has a file here with its OpSpec and a typed
 * builder; native/ops has a file of the same name.
 */

import { EngineError } from '../errors.ts'
import type { AttrValue, Dtype, Lane, Program, ProgramBuffer, ProgramOp } from '../program/types.ts'

/** The part of an op that native code describes too. */
export interface OpSignature {
  readonly name: string
  /** A trailing `?` marks an optional input. */
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
  /** `number` | `string` | `boolean` | `numbers`; a trailing `?` marks an optional attribute. */
  readonly attrs: Readonly<Record<string, string>>
  /** Waits for other ranks. */
  readonly collective: boolean
}

export interface OpSpec extends OpSignature {
  readonly lane: Lane
  /** Output index → the input whose buffer it must be. */
  readonly inPlace?: Readonly<Record<number, number>>
  /** Works on all rows at once, never on a part. */
  readonly whole?: boolean
  /** Done for every part, though its output has rows of a fixed number: ops of routed experts. */
  readonly perPart?: boolean
  /** Throws ERR_PROGRAM when shapes, dtypes or attribute values do not fit. */
  check(op: OpOperands): void
}

/** What a typed builder returns: buffers by index in the program being built. */
export interface OpDraft {
  readonly kind: string
  readonly inputs: readonly (number | null)[]
  readonly outputs: readonly number[]
  readonly attrs: Readonly<Record<string, AttrValue>>
}

/** Attributes without those that are undefined. */
export function definedAttrs(
  attrs: Readonly<Record<string, AttrValue | undefined>>,
): Record<string, AttrValue> {
  const entries = Object.entries(attrs).filter(([, value]) => value !== undefined)
  return Object.fromEntries(entries) as Record<string, AttrValue>
}

const FLOATS: readonly Dtype[] = ['f32', 'bf16', 'f16']

/** An op of a program with its operands looked up, and the rules that several ops share. */
export class OpOperands {
  readonly program: Program
  readonly op: ProgramOp

  constructor(program: Program, op: ProgramOp) {
    this.program = program
    this.op = op
  }

  input(index: number): ProgramBuffer {
    return this.program.buffers[this.op.inputs[index]!.buffer]!
  }

  optionalInput(index: number): ProgramBuffer | undefined {
    const view = this.op.inputs[index]
    return view ? this.program.buffers[view.buffer] : undefined
  }

  output(index: number): ProgramBuffer {
    return this.program.buffers[this.op.outputs[index]!.buffer]!
  }

  has(attr: string): boolean {
    return this.op.attrs[attr] !== undefined
  }

  /** A number attribute; `fallback` where it is absent. */
  number(attr: string, fallback = 0): number {
    return (this.op.attrs[attr] as number | undefined) ?? fallback
  }

  /** A whole-number attribute of 1..4096. */
  size(attr: string): number {
    const value = this.number(attr)
    this.require(Number.isInteger(value) && value >= 1 && value <= 4096, `${attr} is ${value}`)
    return value
  }

  require(condition: boolean, message: string): void {
    if (condition) return
    const { kind, label } = this.op
    throw new EngineError('ERR_PROGRAM', `op ${label} (${kind}): ${message}`, { op: label })
  }

  requireNotNegative(attr: string): void {
    this.require(this.number(attr) >= 0, `${attr} is negative`)
  }

  /** [T or R, cols] floats in the arena; any width when `cols` is undefined. Returns the width. */
  activation(buffer: ProgramBuffer, cols?: number): number {
    const { name, space, shape, dtype } = buffer
    this.require(space === 'arena', `${name} must be in the arena`)
    const [rows, width] = shape
    this.require(
      shape.length === 2 && (rows === 'T' || rows === 'R') && typeof width === 'number',
      `${name} must be [T or R, columns], it is [${shape}]`,
    )
    this.require(FLOATS.includes(dtype), `${name} must be f32, bf16 or f16, it is ${dtype}`)
    this.require(cols === undefined || width === cols, `${name} must have ${cols} columns`)
    return width as number
  }

  tokenRows(...buffers: ProgramBuffer[]): void {
    for (const { name, shape } of buffers) {
      this.require(shape[0] === 'T', `${name} must have T rows`)
    }
  }

  dtype(buffer: ProgramBuffer, dtype: Dtype): void {
    this.require(buffer.dtype === dtype, `${buffer.name} must be ${dtype}`)
  }

  sameRows(a: ProgramBuffer, b: ProgramBuffer): void {
    this.require(a.shape[0] === b.shape[0], `${a.name} and ${b.name} have rows of other symbols`)
  }

  /** Same row symbol and dtype. */
  alike(a: ProgramBuffer, b: ProgramBuffer): void {
    this.sameRows(a, b)
    this.require(a.dtype === b.dtype, `${a.name} is ${a.dtype}, ${b.name} is ${b.dtype}`)
  }

  /** [rows, cols] of a weight with layout matmul; any number of rows when undefined. */
  weightMatrix(buffer: ProgramBuffer, rows: number | undefined, cols: number): void {
    const { name, space, layout, shape, dtype } = buffer
    this.require(space === 'weight' && layout === 'matmul', `${name} must be a matmul weight`)
    this.require(FLOATS.includes(dtype), `${name} must be f32, bf16 or f16, it is ${dtype}`)
    this.require(
      shape.length === 2 && shape[1] === cols && (rows === undefined || shape[0] === rows),
      `${name} must be [${rows ?? 'rows'}, ${cols}], it is [${shape}]`,
    )
  }

  /** [size] f32 weight. */
  weightVector(buffer: ProgramBuffer | undefined, size: number): void {
    if (buffer === undefined) return
    const { name, space, layout, shape, dtype } = buffer
    this.require(
      space === 'weight' && layout !== 'matmul' && dtype === 'f32',
      `${name} must be a plain f32 weight`,
    )
    this.require(shape.length === 1 && shape[0] === size, `${name} must be [${size}]`)
  }

  /** [blocks, 2, kvHeads, blockSize, headDim]. */
  kvCache(buffer: ProgramBuffer, kvHeads: number, headDim: number): void {
    this.cache(buffer, 2, kvHeads, headDim)
  }

  /** [blocks, 1, 1, blockSize, dim]: one vector a token, of which keys and values are made. */
  latentCache(buffer: ProgramBuffer, dim: number): void {
    this.cache(buffer, 1, 1, dim)
  }

  private cache(buffer: ProgramBuffer, planes: number, kvHeads: number, headDim: number): void {
    const { numBlocks, blockSize } = this.program.limits
    const shape = [numBlocks, planes, kvHeads, blockSize, headDim]
    this.require(buffer.space === 'kv', `${buffer.name} must be a KV cache`)
    this.require(FLOATS.includes(buffer.dtype), `${buffer.name} must be f32, bf16 or f16`)
    this.require(
      buffer.shape.length === 5 && buffer.shape.every((size, i) => size === shape[i]),
      `${buffer.name} must be [${shape}], it is [${buffer.shape}]`,
    )
  }
}
