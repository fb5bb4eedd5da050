/** The whole prompt fits beside a reserve for the sequences that grow. */

import type { AdmissionPolicy } from '../../policy.ts'
import { reservedBlocks } from './reserve.ts'

export const promptFits: AdmissionPolicy = {
  name: 'prompt-fits',
  decide({ neededBlocks, availableBlocks, totalBlocks, alone }) {
    const reserve = alone ? 0 : reservedBlocks(totalBlocks)
    return neededBlocks + reserve <= availableBlocks ? 'admit' : 'wait_blocks'
  },
}
