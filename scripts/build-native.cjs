#!/usr/bin/env node
'use strict'
// Compiles the addon with cmake-js into build/Release/nanoweave.node. Run directly by
// `npm run build:native`; used by install.cjs and, through node-gyp-cmake.cjs, by prebuildify.
//
//   --cuda        with CUDA, for the GPU of this machine, else sm_90a
//   --cuda-all    with CUDA, for every architecture
//   --emulated    build/emulated/nanoweave.node: the CUDA backend on an emulated GPU, for tests
//
// Without these, NANOWEAVE_CUDA (AUTO, ON, OFF) and NANOWEAVE_CUDA_ARCHITECTURES (a list, or `all`)
// of the environment count; AUTO builds with CUDA where there is a GPU and nvcc.

const { spawnSync } = require('node:child_process')
const os = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..')

/** What the addon is made of, for freshness checks. */
const nativeSources = ['native', 'CMakeLists.txt'].map((name) => path.join(root, name))

// One compiler process takes up to about a gigabyte; more of them than fit would swap.
function parallelJobs() {
  const bytesPerJob = 1 << 30
  return Math.max(1, Math.min(os.availableParallelism(), Math.floor(os.freemem() / bytesPerJob)))
}

function cudaOptions(flags) {
  const { NANOWEAVE_CUDA = 'AUTO', NANOWEAVE_CUDA_ARCHITECTURES = '' } = process.env
  const all = flags.includes('--cuda-all')
  const cuda = all || flags.includes('--cuda') ? 'ON' : NANOWEAVE_CUDA
  // Both always: what CMake remembers of an earlier build must not count.
  return [
    `--CDNANOWEAVE_CUDA=${cuda}`,
    `--CDNANOWEAVE_CUDA_ARCHITECTURES=${all ? 'all' : NANOWEAVE_CUDA_ARCHITECTURES}`,
  ]
}

/** Compiles; `stdio` as in child_process. Returns spawnSync's result. */
function buildNative(stdio, flags = []) {
  const cmakeJs = require.resolve('cmake-js/bin/cmake-js')
  const run = (command, ...more) => {
    const args = [cmakeJs, command, '--directory', root, '--parallel', String(parallelJobs())]
    args.push(...cudaOptions(flags), ...more)
    return spawnSync(process.execPath, args, { cwd: root, stdio, maxBuffer: 64 << 20 })
  }
  // Apart, since only configuring tells CMake the options: building a folder that was configured
  // before keeps the old ones. A folder that was moved or broken is configured from nothing.
  const configured = run('configure')
  if (configured.status !== 0) {
    const again = run('reconfigure')
    if (again.status !== 0) return again
  }
  return run('build', ...(flags.includes('--emulated') ? ['--target', 'nanoweave_emulated'] : []))
}

module.exports = { buildNative, nativeSources, root }

if (require.main === module)
  process.exitCode = buildNative('inherit', process.argv.slice(2)).status ?? 1
