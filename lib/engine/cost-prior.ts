/**
 * What steps are believed to cost before any has run: orders of magnitude from the sizes of the model
 * and the kind of device. The scheduler corrects them with the times it sees.
 */

import type { ModelFootprint } from '../models/index.ts'
import type { CostPrior } from '../scheduler/costs.ts'

interface DeviceRates {
  /** Multiply-adds count as two. */
  readonly flopsPerMs: number
  readonly memoryBytesPerMs: number
  /** Between device and host. */
  readonly copyBytesPerMs: number
  readonly stepMs: number
}

const RATES: Readonly<Record<'cpu' | 'cuda', DeviceRates>> = {
  cpu: { flopsPerMs: 2e8, memoryBytesPerMs: 2e7, copyBytesPerMs: 4e6, stepMs: 0.2 },
  cuda: { flopsPerMs: 3e11, memoryBytesPerMs: 2e9, copyBytesPerMs: 2e7, stepMs: 0.5 },
}

/** Of one rank: multiplying, and bringing weights from another rank. */
export function expertRates(backend: 'cpu' | 'cuda') {
  const { flopsPerMs, memoryBytesPerMs } = RATES[backend]
  // Ranks of the CPU share a memory: a copy is a read and a write. GPUs reach each other at a tenth
  // of the rate of their own memory or less.
  const part = backend === 'cpu' ? 2 : 10
  return { flopsPerSecond: 1e3 * flopsPerMs, bytesPerSecond: (1e3 * memoryBytesPerMs) / part }
}

/** Of all `world` ranks together, which work side by side. */
export function costPrior(
  backend: 'cpu' | 'cuda',
  footprint: ModelFootprint,
  world: number,
  blockSize: number,
): CostPrior {
  const { flopsPerMs, memoryBytesPerMs, copyBytesPerMs, stepMs } = RATES[backend]
  const blockBytes = footprint.kvBytesPerBlock(blockSize)
  // Every step reads the weights once, however few its tokens are.
  return {
    perStep: stepMs + footprint.weightBytesPerRank / memoryBytesPerMs,
    perToken: (2 * footprint.parameters) / world / flopsPerMs,
    perContextToken: blockBytes / blockSize / memoryBytesPerMs,
    perSwappedBlock: blockBytes / copyBytesPerMs,
  }
}
