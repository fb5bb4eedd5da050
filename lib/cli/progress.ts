/** Progress bars on stderr; nothing where stderr is no terminal. */

import type { LoadProgress } from '../engine/types.ts'
import { formatBytes } from './output.ts'

const barWidth = 24
const redrawMs = 50

export interface Bar {
  /** `note` follows the bar. */
  readonly draw: (done: number, total: number, note: string) => void
  /** Erases the bar. */
  readonly clear: () => void
}

export function createBar(label: string): Bar {
  let lastDrawn = 0
  let drawn = false
  return {
    draw(done, total, note) {
      const now = performance.now()
      if (!process.stderr.isTTY || total === 0 || now - lastDrawn < redrawMs) return
      lastDrawn = now
      drawn = true
      const filled = Math.round((done / total) * barWidth)
      const bar = '█'.repeat(filled) + '░'.repeat(barWidth - filled)
      process.stderr.write(`\r\x1b[K${label} ${bar} ${note}`)
    },
    clear() {
      if (drawn) process.stderr.write('\r\x1b[K')
      drawn = false
    },
  }
}

export interface ProgressBar {
  readonly update: (progress: LoadProgress) => void
  /** Erases the bar. */
  readonly clear: () => void
}

/** While weights load. */
export function createProgressBar(label: string): ProgressBar {
  const { draw, clear } = createBar(label)
  return {
    update: ({ bytesDone, bytesTotal }) =>
      draw(bytesDone, bytesTotal, `${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`),
    clear,
  }
}
