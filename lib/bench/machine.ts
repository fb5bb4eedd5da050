/**
 * The header of a bench report: which machine, which versions, which commit, and how busy the
 * machine was, since a figure without them cannot be compared with anything.
 */

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/** The GPU as nvidia-smi reports it before the run. */
export interface Gpu {
  readonly name: string
  readonly driver: string
  readonly clocksMhz: { readonly sm: number; readonly memory: number; readonly maxSm: number }
  readonly powerLimitWatts: number
}

export interface Machine {
  readonly cpu: string
  readonly cores: number
  /** On a GPU run; null where nvidia-smi is missing. */
  readonly gpu?: Gpu | null
  /** As the operating system reports them at the start; 0 where it does not. */
  readonly clocksMhz: readonly number[]
  readonly memoryBytes: number
  readonly os: string
  readonly node: string
  readonly nanoweave: string
  /** Of the checkout; null outside one. A trailing + means uncommitted changes. */
  readonly commit: string | null
  /** Runnable processes over the last minute before the run. */
  readonly loadAverage: number
  readonly date: string
}

/** The package's root: the first folder above this file that has a package.json. */
function packageRoot(): string {
  let folder = path.dirname(fileURLToPath(import.meta.url))
  while (!existsSync(path.join(folder, 'package.json')) && path.dirname(folder) !== folder) {
    folder = path.dirname(folder)
  }
  return folder
}

function readCommit(root: string): string | null {
  if (!existsSync(path.join(root, '.git'))) return null
  const git = (...args: string[]) =>
    execFileSync('git', ['-C', root, ...args], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim()
  try {
    const changed = git('status', '--porcelain', '--untracked-files=no') !== ''
    return git('rev-parse', '--short=12', 'HEAD') + (changed ? '+' : '')
  } catch {
    return null
  }
}

/** Model name and vector extensions that matter here. */
function describeCpu(): string {
  const model = os.cpus()[0]?.model.trim() ?? os.arch()
  let flags = ''
  try {
    flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? ''
  } catch {
    return model
  }
  const known = ['avx2', 'avx512f', 'avx512_bf16', 'amx_bf16']
  const present = known.filter((flag) => flags.split(' ').includes(flag))
  return present.length === 0 ? model : `${model} (${present.join(' ')})`
}

/** Node reports 0 on some virtual machines whose kernel does know. */
function readClocks(): number[] {
  const speeds = os.cpus().map((cpu) => cpu.speed)
  if (speeds.some((speed) => speed > 0) || !existsSync('/proc/cpuinfo')) return speeds
  const text = readFileSync('/proc/cpuinfo', 'utf8')
  return [...text.matchAll(/^cpu MHz\s*:\s*([\d.]+)/gm)].map((match) =>
    Math.round(Number(match[1])),
  )
}

/** Reads only; null without nvidia-smi. */
function readGpu(): Gpu | null {
  const fields = 'name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit'
  try {
    const line = execFileSync(
      'nvidia-smi',
      [`--query-gpu=${fields}`, '--format=csv,noheader,nounits'],
      {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
        timeout: 20_000,
      },
    ).split('\n')[0]!
    const [name, driver, sm, memory, maxSm, power] = line.split(',').map((text) => text.trim())
    return {
      name: name!,
      driver: driver!,
      clocksMhz: { sm: Number(sm), memory: Number(memory), maxSm: Number(maxSm) },
      powerLimitWatts: Number(power),
    }
  } catch {
    return null
  }
}

/** `NANOWEAVE_COMMIT` names the commit where there is no checkout: a bundle has none. */
export function describeMachine(backend: 'cpu' | 'cuda' = 'cpu'): Machine {
  const root = packageRoot()
  const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  return {
    cpu: describeCpu(),
    cores: os.availableParallelism(),
    ...(backend === 'cuda' && { gpu: readGpu() }),
    clocksMhz: readClocks(),
    memoryBytes: os.totalmem(),
    os: `${os.type()} ${os.arch()}`,
    node: process.version,
    nanoweave: String(manifest.version),
    commit: process.env.NANOWEAVE_COMMIT ?? readCommit(root),
    loadAverage: os.loadavg()[0]!,
    date: new Date().toISOString(),
  }
}
