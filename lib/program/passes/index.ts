/** The passes that turn a serial program into an executable one, in order. A pass is a file and a line. */

import type { Program } from '../types.ts'
import { fuseAllReduce } from './fuse-all-reduce.ts'
import { assignLanes, type LaneMode } from './lanes.ts'
import { splitNanoBatches } from './nano-batch.ts'
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
  { name: 'waits', run: deriveWaits },
]
