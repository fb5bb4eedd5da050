/** A progress bar on stderr while weights load; nothing where stderr is no terminal. */

import type { LoadProgress } from '../engine/types.ts'
import { formatBytes } from './output.ts'

const barWidth = 24
const redrawMs = 50

export interface ProgressBar {
  readonly update: (progress: LoadProgress) => void
  /** Erases the bar. */
  readonly clear: () => void
}

export function createProgressBar(label: string): ProgressBar {
  let lastDrawn = 0
  let drawn = false
  return {
    update({ bytesDone, bytesTotal }) {
      const now = performance.now()
      if (!process.stderr.isTTY || bytesTotal === 0 || now - lastDrawn < redrawMs) return
      lastDrawn = now
      drawn = true
      const filled = Math.round((bytesDone / bytesTotal) * barWidth)
      const bar = '█'.repeat(filled) + '░'.repeat(barWidth - filled)
      process.stderr.write(
        `\r\x1b[K${label} ${bar} ${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`,
      )
    },
    clear() {
      if (drawn) process.stderr.write('\r\x1b[K')
      drawn = false
    },
  }
}
