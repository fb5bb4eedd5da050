/**
 * The addon with the CUDA backend on an emulated GPU (`npm run build:emulated`). A test file that
 * wants it calls `useEmulation` before it loads anything of lib/native or test/support.
 */

import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Whether a C++ compiler, CMake and flock are there to build it with. */
export function canBuildEmulation(): boolean {
  const runs = (tool: string) => spawnSync(tool, ['--version']).status === 0
  return runs('cmake') && runs('flock') && ['c++', 'g++', 'clang++'].some(runs)
}

/** Compiles what has changed, one process at a time; throws what the compiler says. */
export function buildEmulation(): void {
  const build = spawnSync(
    'flock',
    [root, process.execPath, 'scripts/build-native.cjs', '--emulated'],
    {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 64 << 20,
    },
  )
  if (build.status !== 0) throw new Error(`${build.stdout}${build.stderr}`.slice(-8000))
}

/** Makes this process load the emulated addon, and test/support place its ranks on its GPUs. */
export function useEmulation(): void {
  process.env.NANOWEAVE_BINARY = fileURLToPath(
    new URL('../../build/emulated/nanoweave.node', import.meta.url),
  )
  process.env.NANOWEAVE_TEST_DEVICE = 'cuda:0'
}
