/** Options of the command line: how values are read, and how errors name them. */

import { Command } from 'commander'
import { describe, expect, it } from 'vitest'
import { describeError, missingDeviceAdvice } from '../lib/cli/describe-error.ts'
import { addEngineOptions, addSamplingOptions, parseBytes } from '../lib/cli/options.ts'
import { EngineError } from '../lib/errors.ts'

describe('sizes', () => {
  it.each([
    ['1', 1],
    ['4096', 4096],
    ['4GB', 4e9],
    ['4 gb', 4e9],
    ['1.5GB', 1.5e9],
    ['4GiB', 4 * 2 ** 30],
    ['4G', 4 * 2 ** 30],
    ['512m', 512 * 2 ** 20],
    ['100KB', 1e5],
    ['2T', 2 ** 41],
  ])('%s is %d bytes', (text, bytes) => expect(parseBytes(text)).toBe(bytes))

  it.each(['', '0', '0.1', '-1', '4XB', 'GB', '1e9', '99999999T', '4GB4'])(
    '%j is refused',
    (text) => expect(() => parseBytes(text)).toThrow(),
  )
})

describe('errors', () => {
  const command = addSamplingOptions(addEngineOptions(new Command('generate')))
  const named = (message: string) => describeError(new EngineError('ERR_USAGE', message), command)

  it.each([
    ['lower maxTokens or raise kvCacheBytes', 'lower --max-tokens or raise --kv-cache-bytes'],
    ['topP must be a number from 0 to 1', '--top-p must be a number from 0 to 1'],
    ['temperature must be a number', '--temperature must be a number'],
    ['the temperature of stop and seed', 'the temperature of stop and seed'],
    ['tensorParallel 3 does not divide', '--tp 3 does not divide'],
  ])('%s → %s', (message, expected) => {
    expect(named(message)).toBe(`nanoweave: ${expected} [ERR_USAGE]`)
  })

  it('an absent device comes with what to do, the same as doctor says', () => {
    const why = 'built without CUDA'
    const error = new EngineError('ERR_NO_DEVICE', `there is no cuda device (${why})`)
    expect(missingDeviceAdvice(why)).toBeDefined()
    expect(describeError(error, command)).toContain(missingDeviceAdvice(why))
    expect(missingDeviceAdvice('the NVIDIA driver is too old: it supports CUDA 12.4')).toContain(
      'newer',
    )
    expect(missingDeviceAdvice('no GPU')).toContain('visible')
    expect(missingDeviceAdvice('something else')).toBeUndefined()
  })
})
