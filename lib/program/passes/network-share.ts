/**
 * network-share: tells the backend which share of a device collectives may hold while other lanes compute,
 * so that matmuls leave it free. A program in which nothing overlaps has none.
 */

import type { Program } from '../types.ts'
import type { PassOptions } from './index.ts'

export function setNetworkShare(
  program: Program,
  { parts, overlap, shares }: PassOptions,
): Program {
  const isOverlapped = parts > 1 || overlap !== undefined
  const share = shares?.network ?? 1
  return isOverlapped && share < 1 ? { ...program, networkShare: share } : program
}
