/** Placement: which device each rank runs on. */

import { EngineError } from '../errors.ts'
import type { DeviceDescription, DevicesDescription } from '../native/binding.ts'
import type { DeviceKind } from './types.ts'

/**
 * One device per rank. `names` are repeated as needed; without names, ranks go round the devices of
 * `kind` (`auto`: CUDA where there is any). ERR_NO_DEVICE says what is there instead.
 */
export function placeRanks(
  found: DevicesDescription,
  world: number,
  kind: DeviceKind = 'auto',
  names?: readonly string[],
): DeviceDescription[] {
  if (names !== undefined) {
    if (names.length === 0) throw new EngineError('ERR_USAGE', 'devices must name a device')
    const chosen = names.map((name) => {
      const device = found.devices.find((candidate) => candidate.name === name)
      if (device === undefined) throw noDevice(`there is no device ${name}`, found, name)
      return device
    })
    if (new Set(chosen.map((device) => device.backend)).size > 1)
      throw new EngineError('ERR_USAGE', 'devices must all be of one kind')
    return Array.from({ length: world }, (_, rank) => chosen[rank % chosen.length])
  }
  const of = (backend: string) => found.devices.filter((device) => device.backend === backend)
  if (kind !== 'auto' && kind !== 'cpu' && kind !== 'cuda')
    throw new EngineError('ERR_USAGE', `device must be auto, cpu or cuda, not ${String(kind)}`)
  const candidates = kind === 'auto' ? [of('cuda'), of('cpu')] : [of(kind)]
  const devices = candidates.find((list) => list.length > 0)
  if (devices === undefined)
    throw noDevice(`there is no ${kind === 'auto' ? 'usable' : kind} device`, found, kind)
  return Array.from({ length: world }, (_, rank) => devices[rank % devices.length])
}

function noDevice(problem: string, found: DevicesDescription, wanted: string): EngineError {
  const backend = wanted.split(':')[0]
  const why = Object.hasOwn(found.missing, backend) ? ` (${found.missing[backend]})` : ''
  const names = found.devices.map((device) => device.name).join(', ')
  return new EngineError('ERR_NO_DEVICE', `${problem}${why}; found: ${names || 'none'}`)
}
