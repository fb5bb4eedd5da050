/** Whether the server should be sent requests: not failed, not draining, and no step overdue. */

import type { ServedEngine } from './types.ts'

export type NotReady = 'draining' | 'engine_failed' | 'step_overdue'

export interface Readiness {
  /** Undefined: ready. */
  problem(): NotReady | undefined
  stop(): void
}

const SAMPLE_MS = 250

export function watchReadiness(
  engine: ServedEngine,
  stepOverdueMs: number,
  isDraining: () => boolean,
): Readiness {
  let lastSteps = -1
  let lastProgressMs = performance.now()
  const sample = (): void => {
    const { steps, stepsInFlight } = engine.stats()
    if (steps === lastSteps && stepsInFlight > 0) return
    lastSteps = steps
    lastProgressMs = performance.now()
  }
  const timer = setInterval(sample, SAMPLE_MS)
  timer.unref()
  return {
    problem() {
      if (engine.stats().failed !== undefined) return 'engine_failed'
      if (isDraining()) return 'draining'
      sample()
      return performance.now() - lastProgressMs > stepOverdueMs ? 'step_overdue' : undefined
    },
    stop: () => clearInterval(timer),
  }
}
