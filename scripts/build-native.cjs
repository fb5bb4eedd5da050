#!/usr/bin/env node
'use strict'
// Compiles the addon with cmake-js into build/Release/nanoweave.node. Run directly by
// `npm run build:native`; used by install.cjs and, through node-gyp-cmake.cjs, by prebuildify.

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

/** Compiles; `stdio` as in child_process. Returns spawnSync's result. */
function buildNative(stdio) {
  const cmakeJs = require.resolve('cmake-js/bin/cmake-js')
  const args = [cmakeJs, 'compile', '--directory', root, '--parallel', String(parallelJobs())]
  return spawnSync(process.execPath, args, { cwd: root, stdio, maxBuffer: 64 << 20 })
}

module.exports = { buildNative, nativeSources, root }

if (require.main === module) process.exitCode = buildNative('inherit').status ?? 1
