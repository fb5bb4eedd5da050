/**
 * Where the ranks of a bench run. Several ranks on one GPU ("virtual ranks") share its memory and no
 * link between GPUs takes part, so their rows are labelled and bound by that memory's bandwidth.
 */

import { placeRanks } from '../engine/devices.ts'
import { EngineError } from '../errors.ts'
import type { DeviceDescription } from '../native/binding.ts'
import { loadBinding } from '../native/load.ts'

export type BenchBackend = 'cpu' | 'cuda'

/** `cpu`, `cuda` or `cuda:N`; ERR_USAGE otherwise. */
export function backendOf(device: string): BenchBackend {
  if (device === 'cpu') return 'cpu'
  if (/^cuda(:\d{1,3})?$/.test(device)) return 'cuda'
  throw new EngineError('ERR_USAGE', `device ${device}: expected cpu, cuda or cuda:N`)
}

/** One device per rank: `cuda` goes round all GPUs, `cuda:1` puts all ranks there. */
export function placeBench(device: string, ranks: number): readonly DeviceDescription[] {
  const backend = backendOf(device)
  const named = device.includes(':') ? [device] : undefined
  return placeRanks(loadBinding().describeDevices(), ranks, backend, named)
}

/** Several ranks on one GPU. */
export function isVirtual(devices: readonly DeviceDescription[]): boolean {
  const gpus = devices.filter(({ backend }) => backend === 'cuda').map(({ name }) => name)
  return new Set(gpus).size < gpus.length
}
