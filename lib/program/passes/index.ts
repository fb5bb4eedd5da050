/** The passes that turn a serial program into an executable one, in order. A pass is a file and a line. */

import type { Program } from '../types.ts'
import { fuseAllReduce } from './fuse-all-reduce.ts'
import { assignLanes } from './lanes.ts'
import { splitNanoBatches } from './nano-batch.ts'

export interface PassOptions {
  /** Nano-batches, 1..4. */
  readonly parts: number
}

export interface Pass {
  readonly name: string
  run(program: Program, options: PassOptions): Program
}

export const PASSES: readonly Pass[] = [
  { name: 'fuse-all-reduce', run: fuseAllReduce },
  { name: 'nano-batch', run: (program, { parts }) => splitNanoBatches(program, parts) },
  { name: 'lanes', run: assignLanes },
]
