/** NCCL and cuBLASLt are looked for at run time: a variable is final, absence is a message. */

import { spawnSync } from 'node:child_process'
import { expect, it } from 'vitest'
import type { LibraryDescription } from '../lib/native/binding.ts'
import { resolveBinary } from '../lib/native/load.ts'

function describeLibraries(env: Record<string, string>): LibraryDescription[] {
  const code = `console.log(JSON.stringify(require(process.argv[1]).describeLibraries()))`
  const child = spawnSync(process.execPath, ['-e', code, resolveBinary()], {
    env: { PATH: process.env.PATH ?? '', ...env },
    encoding: 'utf8',
  })
  expect(child.stderr).toBe('')
  return JSON.parse(child.stdout)
}

it('names both libraries and says of each what was found or what to do', () => {
  const libraries = describeLibraries({})
  expect(libraries.map(({ name }) => name)).toEqual(['NCCL', 'cuBLASLt'])
  for (const { version, path, missing } of libraries) {
    if (missing === undefined) expect(path).toMatch(/^\/.*\.so/)
    else expect(missing).toMatch(/was not found: .*; install it .*, or set NANOWEAVE_/)
    if (missing === undefined) expect(version).toMatch(/^\d+\.\d+\.\d+$/)
  }
})

it('a path in the environment is final, whatever else is there', () => {
  const [nccl, cublaslt] = describeLibraries({
    NANOWEAVE_NCCL: '/nowhere/libnccl.so',
    NANOWEAVE_CUBLASLT: process.execPath,
  })
  expect(nccl?.missing).toMatch(/^NCCL could not be opened: NANOWEAVE_NCCL is \/nowhere/)
  expect(cublaslt?.missing).toMatch(/^cuBLASLt could not be opened: NANOWEAVE_CUBLASLT is /)
})

it('a library without the function that is needed is named, not called', () => {
  const [nccl] = describeLibraries({ NANOWEAVE_NCCL: 'libm.so.6' })
  expect(nccl?.missing).toMatch(/^NCCL \(.*libm.*\) has no function ncclGetVersion/)
})
