/**
 * Finds, loads and checks the native addon, once per thread: a local build (build/Release), else
 * the package's prebuilt binary. Its errors become EngineErrors here.
 */

import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { EngineError, ERROR_CODES, type ErrorCode } from '../errors.ts'
import { checkOpTable } from '../ops/index.ts'
import type { NativeBinding } from './binding.ts'

const require = createRequire(import.meta.url)

/** The package's folder; lib/native and dist/native lie equally deep. */
const packageRoot = fileURLToPath(new URL('../..', import.meta.url))

/** What `install` wrote while it compiled, where it did. */
const installLog = fileURLToPath(new URL('../../build/install.log', import.meta.url))

let loaded: NativeBinding | undefined

/** Path of the addon; ERR_NO_BINARY where there is none. `NANOWEAVE_BINARY` overrides the search. */
export function resolveBinary(): string {
  const override = process.env.NANOWEAVE_BINARY
  if (override !== undefined && override !== '') {
    const file = path.resolve(override)
    if (existsSync(file)) return file
    throw new EngineError(
      'ERR_NO_BINARY',
      `NANOWEAVE_BINARY names ${override}, which does not exist`,
    )
  }
  const nodeGypBuild = require('node-gyp-build') as { resolve(folder: string): string }
  try {
    return nodeGypBuild.resolve(packageRoot)
  } catch (cause) {
    const log = existsSync(installLog) ? ` What compiling said is in ${installLog}.` : ''
    throw new EngineError(
      'ERR_NO_BINARY',
      `there is no native addon for ${process.platform}-${process.arch}. With cmake, make and a C++20 compiler, ` +
        `run \`npm rebuild nanoweave\` (in a clone: \`npm run build:native\`).${log}`,
      { cause },
    )
  }
}

/**
 * The addon; the same object on every call. ERR_NO_BINARY when there is none or it does not load
 * here, ERR_INTERNAL when its ops are not those of this version.
 */
export function loadBinding(): NativeBinding {
  if (loaded !== undefined) return loaded
  const file = resolveBinary()
  let binding: NativeBinding
  try {
    binding = require(file) as NativeBinding
  } catch (cause) {
    throw new EngineError(
      'ERR_NO_BINARY',
      `${file} does not load: ${(cause as Error).message}. Compile it for this machine: \`npm rebuild nanoweave\`, ` +
        'in a clone `npm run build:native`.',
      { cause },
    )
  }
  checkOpTable(binding.describeOps())
  loaded = binding
  return binding
}

function isErrorCode(code: unknown): code is ErrorCode {
  return (ERROR_CODES as readonly unknown[]).includes(code)
}

/** What the addon threw, as an EngineError; anything without a known code is ERR_INTERNAL. */
export function toEngineError(error: unknown): EngineError {
  if (error instanceof EngineError) return error
  const fields: { code?: unknown; rank?: unknown; op?: unknown; step?: unknown } = Object(error)
  const message = error instanceof Error ? error.message : String(error)
  return new EngineError(isErrorCode(fields.code) ? fields.code : 'ERR_INTERNAL', message, {
    cause: error,
    ...(typeof fields.rank === 'number' ? { rank: fields.rank } : {}),
    ...(typeof fields.op === 'string' ? { op: fields.op } : {}),
    ...(typeof fields.step === 'number' ? { step: fields.step } : {}),
  })
}
