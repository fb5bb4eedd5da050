/**
 * The whole prompt fits beside a reserve, and so does the projected peak of what runs
 * (projection.ts): admitting more would only mean preempting it again.
 */

import type { AdmissionPolicy } from '../../policy.ts'
import { promptFits } from './prompt-fits.ts'
import { reservedBlocks } from './reserve.ts'

export const projectedPeak: AdmissionPolicy = {
  name: 'projected-peak',
  decide(view) {
    const verdict = promptFits.decide(view)
    if (verdict !== 'admit' || view.alone) return verdict
    const room = view.totalBlocks - reservedBlocks(view.totalBlocks)
    return view.projectedPeakBlocks > room ? 'wait_projected_peak' : 'admit'
  },
}
