/**
 * Time of a collective alone: latency plus bytes over bandwidth, with the fastest transport there is.
 * `bytes` is the whole buffer of one rank: all-reduce and reduce-scatter read it, all-gather fills it.
 */

import type { Hardware } from './hardware.ts'

export type Collective = 'all_reduce' | 'reduce_scatter' | 'all_gather'

/** A switch pays from three ranks on; two exchange their halves directly. */
const MIN_MULTICAST_RANKS = 3

/** Bytes that a rank reads from its peers, or stores to them, over the links between devices. */
export function peerSeconds({ interconnect }: Hardware, bytes: number): number {
  if (bytes === 0) return 0
  return interconnect.latencySeconds + bytes / interconnect.busBytesPerSecond
}

export function collectiveSeconds(
  hardware: Hardware,
  collective: Collective,
  bytes: number,
  ranks: number,
): number {
  if (ranks <= 1 || bytes === 0) return 0
  const { latencySeconds, busBytesPerSecond, multicast } = hardware.interconnect
  // nccl-tests: an all-reduce moves 2·(W-1)/W of the buffer over every link, the others half of it.
  const passes = collective === 'all_reduce' ? 2 : 1
  const wire = (passes * (ranks - 1) * bytes) / ranks
  const peers = latencySeconds + wire / busBytesPerSecond
  if (multicast === undefined || ranks < MIN_MULTICAST_RANKS) return peers
  const rate =
    collective === 'all_reduce' ? multicast.allReduceBytesPerSecond : multicast.gatherBytesPerSecond
  return Math.min(peers, multicast.latencySeconds + bytes / rate)
}
