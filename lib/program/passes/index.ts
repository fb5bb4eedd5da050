/** The passes that turn a serial program into an executable one, in order. A pass is a file and a line. */

import type { Program } from '../types.ts'
import { fuseAllReduce } from './fuse-all-reduce.ts'
import { assignLanes, type LaneMode } from './lanes.ts'
import { splitNanoBatches } from './nano-batch.ts'
import { setNetworkShare } from './network-share.ts'
import { type MatmulOverlap, overlapMatmuls } from './overlap-matmul.ts'
import { deriveWaits } from './waits.ts'

export interface PassOptions {
  /** Nano-batches, 1..4. */
  readonly parts: number
  /** Groups by which a part trails the one before it; 0: parts take turns at the same depth. */
  readonly stagger?: number
  /** Default: `all`. */
  readonly lanes?: LaneMode
  /** Sums that go into the matmul before them; absent: none. */
  readonly overlap?: MatmulOverlap | undefined
  /** Of the device, what collectives hold while other lanes compute; absent or 1: the backend decides. */
  readonly shares?: { readonly network: number } | undefined
}

export interface Pass {
  readonly name: string
  run(program: Program, options: PassOptions): Program
}

export const PASSES: readonly Pass[] = [
  { name: 'overlap-matmul', run: (program, { overlap }) => overlapMatmuls(program, overlap) },
  { name: 'fuse-all-reduce', run: fuseAllReduce },
  { name: 'lanes', run: (program, { lanes }) => assignLanes(program, lanes) },
  {
    name: 'nano-batch',
    run: (program, { parts, stagger }) => splitNanoBatches(program, parts, stagger),
  },
  { name: 'network-share', run: setNetworkShare },
  { name: 'waits', run: deriveWaits },
]
