/**
 * First come, first served: order of arrival, a fixed number of tokens per step (Sarathi-Serve), admission
 * while the projected peak of blocks fits, and the newest of the lowest priority as victim.
 */

import type { AdmissionView, SchedulingPolicy, SequenceView } from '../policy.ts'

/** Part of the blocks that admission leaves free for sequences that grow. */
const WATERMARK = 0.01

export const fcfs: SchedulingPolicy = {
  name: 'fcfs',

  next() {
    return 0
  },

  tokenBudget(load) {
    return load.maxNumBatchedTokens
  },

  admission(view: AdmissionView) {
    if (view.alone) return view.neededBlocks <= view.availableBlocks ? 'admit' : 'wait_blocks'
    const reserve = Math.floor(view.totalBlocks * WATERMARK)
    if (view.neededBlocks + reserve > view.availableBlocks) return 'wait_blocks'
    if (view.projectedPeakBlocks > view.totalBlocks - reserve) return 'wait_projected_peak'
    return 'admit'
  },

  victim(candidates: readonly SequenceView[]) {
    let worst = candidates.length - 1
    for (let i = worst - 1; i >= 0; i--) {
      const a = candidates[i]
      const b = candidates[worst]
      if (a.priority < b.priority || (a.priority === b.priority && a.id > b.id)) worst = i
    }
    return worst
  },
}
