/**
 * Builds a program op by op, in an order that is a correct serial execution. Buffers are named and
 * declared before use; parts, waits and offsets are the passes' business.
 */

import { EngineError } from '../errors.ts'
import { opSpec } from '../ops/index.ts'
import type { OpDraft } from '../ops/spec.ts'
import type {
  Dim,
  Dtype,
  Program,
  ProgramBuffer,
  ProgramLimits,
  ProgramOp,
  WeightLayout,
} from './types.ts'

export interface ProgramHeader {
  readonly name: string
  readonly world: number
  readonly tp: number
  readonly limits: ProgramLimits
}

export class ProgramBuilder {
  readonly header: ProgramHeader
  private readonly buffers: ProgramBuffer[] = []
  private readonly ops: ProgramOp[] = []
  private readonly names = new Set<string>()

  constructor(header: ProgramHeader) {
    this.header = header
  }

  /** An activation; returns the buffer's index. */
  arena(name: string, dtype: Dtype, shape: readonly Dim[]): number {
    return this.declare({ name, space: 'arena', dtype, shape })
  }

  weight(name: string, dtype: Dtype, shape: readonly number[], layout: WeightLayout): number {
    return this.declare({ name, space: 'weight', dtype, shape, layout })
  }

  /** [blocks, 2, kvHeads, blockSize, headDim] of the program's limits. */
  kv(name: string, dtype: Dtype, kvHeads: number, headDim: number): number {
    const { numBlocks, blockSize } = this.header.limits
    return this.declare({
      name,
      space: 'kv',
      dtype,
      shape: [numBlocks, 2, kvHeads, blockSize, headDim],
    })
  }

  /** [blocks, 1, 1, blockSize, dim]: one vector a token, of which keys and values are made. */
  latentCache(name: string, dtype: Dtype, dim: number): number {
    const { numBlocks, blockSize } = this.header.limits
    return this.declare({ name, space: 'kv', dtype, shape: [numBlocks, 1, 1, blockSize, dim] })
  }

  /** Appends an op on its usual lane. */
  add(label: string, draft: OpDraft): void {
    const view = (buffer: number) => ({ buffer })
    this.ops.push({
      kind: draft.kind,
      label,
      lane: opSpec(draft.kind).lane,
      inputs: draft.inputs.map((buffer) => (buffer === null ? null : view(buffer))),
      outputs: draft.outputs.map(view),
      attrs: draft.attrs,
      waits: [],
    })
  }

  /** The program so far: one part, no offsets, no waits. */
  build(): Program {
    return {
      version: 1,
      ...this.header,
      parts: 1,
      buffers: [...this.buffers],
      ops: [...this.ops],
      arenaBytes: 0,
    }
  }

  private declare(buffer: ProgramBuffer): number {
    if (this.names.has(buffer.name)) {
      throw new EngineError('ERR_PROGRAM', `two buffers are called ${buffer.name}`)
    }
    this.names.add(buffer.name)
    return this.buffers.push(buffer) - 1
  }
}
