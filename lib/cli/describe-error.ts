/**
 * How an EngineError reads on the command line: the library's option names become the flags that
 * were, or could have been, given, and a device that is absent comes with what to do.
 */

import type { Command } from 'commander'
import type { EngineError } from '../errors.ts'

/** Options whose flag has another name. */
const flagsOfOptions: Readonly<Record<string, string>> = {
  tensorParallel: '--tp',
  expertParallel: '--ep',
}

/** Why there is no CUDA (native/cuda/cudart/device.cc) and what to do about it, most telling first. */
const advice: readonly (readonly [reason: string, advice: string])[] = [
  [
    'built without CUDA',
    'install the CUDA toolkit and run `npm rebuild nanoweave` (in a clone: `npm run build:cuda`)',
  ],
  ['driver is too old', 'install a newer NVIDIA driver, or build with an older CUDA toolkit'],
  ['no NVIDIA driver', 'install the NVIDIA driver; in a container, start it with its GPUs'],
  ['has no kernels for', 'run `npm run build:cuda` on this machine'],
  ['no GPU', 'make a GPU visible: CUDA_VISIBLE_DEVICES, or the options of the container'],
]

/** What to do about a backend that is missing because of `why`; doctor says the same. */
export function missingDeviceAdvice(why: string): string | undefined {
  return advice.find(([reason]) => why.includes(reason))?.[1]
}

/** `message` with the flags of `command` instead of the library's option names. */
export function nameFlags(message: string, command: Command): string {
  let named = message
  for (const option of command.options) {
    const name = option.attributeName()
    if (option.long === undefined || option.long === null) continue
    // A name of one word is a word like others, but for the beginning of `seed must be …`.
    const pattern = /[A-Z]/.test(name)
      ? new RegExp(`(?<![\\w-])${name}\\b`, 'g')
      : new RegExp(`^${name}(?= (?:must|has|holds) )`)
    named = named.replace(pattern, option.long)
  }
  for (const [name, flag] of Object.entries(flagsOfOptions)) {
    named = named.replace(new RegExp(`\\b${name}\\b`, 'g'), flag)
  }
  return named
}

/** The line for stderr. `command`: the one that ran, where one did. */
export function describeError(error: EngineError, command: Command | undefined): string {
  const { code, message } = error
  const named = command === undefined ? message : nameFlags(message, command)
  const advice = code === 'ERR_NO_DEVICE' ? missingDeviceAdvice(message) : undefined
  return `nanoweave: ${named}${advice === undefined ? '' : `; ${advice}`} [${code}]`
}
