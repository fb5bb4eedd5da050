/** The op table, in the order of docs/ops.md and native/ops/table.cc. An op is a file and a line. */

import { EngineError } from '../errors.ts'
import { addRmsNormOp } from './add-rms-norm.ts'
import { allGatherOp } from './all-gather.ts'
import { allGatherMatmulOp } from './all-gather-matmul.ts'
import { allGatherRowsOp } from './all-gather-rows.ts'
import { allReduceOp } from './all-reduce.ts'
import { allReduceRmsNormOp } from './all-reduce-rms-norm.ts'
import { attentionOp } from './attention.ts'
import { copyOp } from './copy.ts'
import { embedOp } from './embed.ts'
import { gatherRowsOp } from './gather-rows.ts'
import { geluMulOp } from './gelu-mul.ts'
import { groupedGluOp } from './grouped-glu.ts'
import { groupedMatmulOp } from './grouped-matmul.ts'
import { headMatmulOp } from './head-matmul.ts'
import { logitsOp } from './logits.ts'
import { matmulOp } from './matmul.ts'
import { matmulAllReduceOp } from './matmul-all-reduce.ts'
import { matmulReduceScatterOp } from './matmul-reduce-scatter.ts'
import { meanSquaresOp } from './mean-squares.ts'
import { mlaAttentionOp } from './mla-attention.ts'
import { mlaSplitRopeCacheOp } from './mla-split-rope-cache.ts'
import { moeCombineOp } from './moe-combine.ts'
import { moeDispatchOp } from './moe-dispatch.ts'
import { moePlaceOp } from './moe-place.ts'
import { moeRouteOp } from './moe-route.ts'
import { reduceScatterOp } from './reduce-scatter.ts'
import { rmsNormOp } from './rms-norm.ts'
import { ropeTableOp } from './rope-table.ts'
import { sampleOp } from './sample.ts'
import { siluMulOp } from './silu-mul.ts'
import type { OpSignature, OpSpec } from './spec.ts'
import { splitRopeCacheOp } from './split-rope-cache.ts'
import { stallOp } from './stall.ts'

export const OPS: readonly OpSpec[] = [
  embedOp,
  ropeTableOp,
  rmsNormOp,
  addRmsNormOp,
  matmulOp,
  meanSquaresOp,
  splitRopeCacheOp,
  attentionOp,
  mlaSplitRopeCacheOp,
  headMatmulOp,
  mlaAttentionOp,
  siluMulOp,
  geluMulOp,
  gatherRowsOp,
  logitsOp,
  allGatherOp,
  sampleOp,
  allReduceOp,
  reduceScatterOp,
  allReduceRmsNormOp,
  allGatherRowsOp,
  matmulAllReduceOp,
  matmulReduceScatterOp,
  allGatherMatmulOp,
  moeRouteOp,
  moePlaceOp,
  moeDispatchOp,
  groupedMatmulOp,
  groupedGluOp,
  moeCombineOp,
  copyOp,
  stallOp,
]

/** Ops of the memory lane that have one of their own where lanes are few: the rest waits in line. */
export const ATTENTION_KINDS: ReadonlySet<string> = new Set([attentionOp.name, mlaAttentionOp.name])

const BY_NAME: ReadonlyMap<string, OpSpec> = new Map(OPS.map((op) => [op.name, op]))

export function findOp(name: string): OpSpec | undefined {
  return BY_NAME.get(name)
}

/** The op of that name; ERR_PROGRAM when there is none. */
export function opSpec(name: string): OpSpec {
  const spec = BY_NAME.get(name)
  if (spec === undefined) throw new EngineError('ERR_PROGRAM', `there is no op called ${name}`)
  return spec
}

/** How `described` (the addon's describeOps()) differs from this table; empty when it does not. */
export function diffOpTable(described: readonly OpSignature[]): string[] {
  const differences: string[] = []
  const names = new Set(described.map((op) => op.name))
  for (const op of OPS) if (!names.has(op.name)) differences.push(`${op.name}: missing`)
  described.forEach((op, index) => {
    const spec = BY_NAME.get(op.name)
    if (spec === undefined) {
      differences.push(`${op.name}: unknown`)
      return
    }
    for (const field of ['inputs', 'outputs', 'attrs', 'collective'] as const) {
      if (canonical(op[field]) === canonical(spec[field])) continue
      differences.push(
        `${op.name}: ${field} ${canonical(op[field])}, not ${canonical(spec[field])}`,
      )
    }
    if (OPS[index] !== spec) differences.push(`${op.name}: at place ${index} of the table`)
  })
  return differences
}

/** Throws ERR_INTERNAL when addon and library disagree about an op: they are of two versions. */
export function checkOpTable(described: readonly OpSignature[]): void {
  const differences = diffOpTable(described)
  if (differences.length === 0) return
  throw new EngineError(
    'ERR_INTERNAL',
    `the native addon and the library are of different versions; rebuild the addon. ${differences.join('; ')}`,
  )
}

/** JSON with attributes in the order of their names. */
function canonical(value: OpSignature[keyof OpSignature]): string {
  if (typeof value !== 'object' || Array.isArray(value)) return JSON.stringify(value)
  return JSON.stringify(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
}
