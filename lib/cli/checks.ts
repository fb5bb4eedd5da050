/** What `nanoweave doctor` looks for: each check says what was found and what to do about it. */

import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { EngineError } from '../errors.ts'
import type { DevicesDescription } from '../native/binding.ts'
import { loadBinding, resolveBinary } from '../native/load.ts'
import { missingDeviceAdvice } from './describe-error.ts'
import { formatBytes } from './output.ts'

export interface Check {
  readonly name: string
  /** `note`: absent, and only needed for what `todo` names. */
  readonly status: 'ok' | 'note' | 'failed'
  readonly found: string
  /** What to do, where something is missing. */
  readonly todo?: string
}

const toolTimeoutMs = 10_000
const run = promisify(execFile)

/** The line of a tool's `--version` with the number, or undefined where it does not run. */
async function toolVersion(tool: string, args = ['--version']): Promise<string | undefined> {
  try {
    const { stdout } = await run(tool, args, { timeout: toolTimeoutMs })
    return stdout
      .split('\n')
      .find((line) => /\d\.\d/.test(line))
      ?.trim()
  } catch {
    return undefined
  }
}

async function firstTool(tools: readonly string[]): Promise<string | undefined> {
  for (const tool of tools) {
    const version = await toolVersion(tool)
    // ninja says nothing but the number.
    if (version !== undefined) return /^\d/.test(version) ? `${tool} ${version}` : version
  }
  return undefined
}

const minimumNode = [20, 17] as const

function checkNode(): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const isEnough = major > minimumNode[0] || (major === minimumNode[0] && minor >= minimumNode[1])
  const found = `${process.version} on ${process.platform}-${process.arch}`
  if (isEnough) return { name: 'Node', status: 'ok', found }
  return {
    name: 'Node',
    status: 'failed',
    found,
    todo: `install ${minimumNode.join('.')} or newer`,
  }
}

function checkAddon(): { readonly check: Check; readonly devices?: DevicesDescription } {
  const name = 'native addon'
  try {
    const file = resolveBinary()
    const devices = loadBinding().describeDevices()
    const build = Object.entries(devices.build)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ')
    return { check: { name, status: 'ok', found: `${file} (${build})` }, devices }
  } catch (error) {
    if (!(error instanceof EngineError)) throw error
    return { check: { name, status: 'failed', found: 'none that loads', todo: error.message } }
  }
}

function deviceChecks({ devices, missing }: DevicesDescription): Check[] {
  const present = devices.map((device): Check => {
    const memory = `${formatBytes(device.freeMemoryBytes)} of ${formatBytes(device.memoryBytes)} free`
    const features = device.features.join(' ')
    const units = device.backend === 'cpu' ? 'threads' : 'multiprocessors'
    return {
      name: device.name,
      status: 'ok',
      found: `${device.model}, ${device.units} ${units}, ${memory}, ${features}`,
    }
  })
  const absent = Object.entries(missing).map(
    ([backend, why]): Check => ({
      name: backend,
      status: 'note',
      found: `not available: ${why}`,
      todo: missingDeviceAdvice(why) ?? `only needed for --device ${backend}`,
    }),
  )
  return [...present, ...absent]
}

/** NCCL and cuBLASLt: opened at run time, never required. */
function libraryChecks(): Check[] {
  return loadBinding()
    .describeLibraries()
    .map(({ name, version, path, missing }): Check => {
      if (missing === undefined) return { name, status: 'ok', found: `${version} (${path})` }
      return {
        name,
        status: 'note',
        found: missing.replace(`${name} was `, ''),
        todo: 'only needed with --device cuda',
      }
    })
}

async function checkTool(name: string, tools: readonly string[], todo: string): Promise<Check> {
  const version = await firstTool(tools)
  if (version !== undefined) return { name, status: 'ok', found: version }
  return { name, status: 'note', found: 'not found', todo }
}

/** The NVIDIA kernel driver's version line. */
function checkDriver(): Check {
  const name = 'NVIDIA driver'
  const file = '/proc/driver/nvidia/version'
  if (!existsSync(file)) {
    return { name, status: 'note', found: 'not loaded', todo: 'only needed for --device cuda' }
  }
  const version = /Kernel Module\s+(?:for \S+\s+)?([\d.]+)/.exec(readFileSync(file, 'utf8'))?.[1]
  return { name, status: 'ok', found: version ?? 'loaded, of unknown version' }
}

function cudaCompilers(): string[] {
  const folders = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda']
  const named = folders.filter((folder) => folder !== undefined && folder !== '')
  return [...named.map((folder) => join(folder!, 'bin', 'nvcc')), 'nvcc']
}

/** Every check, in the order to read them. */
export async function runChecks(): Promise<Check[]> {
  const { check, devices } = checkAddon()
  const toCompile = 'only needed to compile the addon'
  return [
    checkNode(),
    check,
    ...(devices === undefined ? [] : [...deviceChecks(devices), ...libraryChecks()]),
    await checkTool('C++ compiler', ['c++', 'g++', 'clang++'], `${toCompile}: g++ 11 or clang 14`),
    await checkTool('cmake', ['cmake'], `${toCompile}: cmake 3.20 or newer`),
    await checkTool('build tool', ['ninja', 'make'], `${toCompile}: make or ninja`),
    await checkTool('CUDA compiler', cudaCompilers(), 'only needed to compile for CUDA'),
    checkDriver(),
  ]
}
