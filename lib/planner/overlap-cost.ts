/**
 * Time of a matmul that overlaps with a collective: a pipeline of two stages over groups of rows. While
 * both run, the collective has its share of the device and the matmul the rest; the first stage of the
 * first group and the second of the last one have nothing beside them.
 */

import { groupRows } from '../ops/row-groups.ts'
import { type Hardware, performanceOf } from './hardware.ts'
import { type MatmulShape, matmulSeconds } from './matmul-cost.ts'
import { type Collective, collectiveSeconds } from './network-cost.ts'

export interface OverlappedMatmul {
  readonly matmul: MatmulShape
  readonly groups: number
  readonly collective: Collective
  /** Of a row that the collective moves. */
  readonly rowBytes: number
  readonly ranks: number
  /** Of the device, what the collective holds. */
  readonly networkShare: number
}

/** Seconds with `units` of the device for both, launches included. */
export function overlappedSeconds(
  hardware: Hardware,
  overlap: OverlappedMatmul,
  units: number,
): number {
  const { matmul, groups, collective, rowBytes, ranks, networkShare } = overlap
  const { launchSeconds, interference } = hardware
  const rowsOf = (group: number) => {
    const { begin, end } = groupRows(matmul.rows, groups, group)
    return end - begin
  }
  const left = Math.max(1, Math.round(units - hardware.units * networkShare))
  const multiply = (group: number, isAlone: boolean) =>
    launchSeconds +
    matmulSeconds(hardware, { ...matmul, rows: rowsOf(group) }, isAlone ? units : left)
  const speed = performanceOf(interference.network, networkShare)
  const move = (group: number) =>
    launchSeconds + collectiveSeconds(hardware, collective, rowsOf(group) * rowBytes, ranks) / speed

  const isGather = collective === 'all_gather'
  const first = isGather ? move : multiply
  const second = isGather ? multiply : move
  const last = groups - 1
  let seconds = first(0, true) + second(last, true)
  for (let group = 1; group < groups; group++) {
    seconds += Math.max(first(group, false), second(group - 1, false))
  }
  return seconds
}

/** The share of the device a collective holds when its schedule does not say: 16 multiprocessors of an H100. */
export const USUAL_NETWORK_SHARE = 16 / 132
