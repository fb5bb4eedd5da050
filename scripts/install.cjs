#!/usr/bin/env node
'use strict'
// The package's install script: finds an addon that loads here, or compiles one. It never fails
// the installation: without an addon the planner and the simulator still run, and Engine.load
// says ERR_NO_BINARY. What the compiler said is kept in build/install.log.

const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const path = require('node:path')
const nodeGypBuild = require('node-gyp-build')
const { buildNative, nativeSources, root } = require('./build-native.cjs')
const { isFresh } = require('./freshness.cjs')

const logFile = path.join(root, 'build', 'install.log')

function resolveBinary() {
  try {
    return nodeGypBuild.resolve(root)
  } catch {
    return undefined
  }
}

// In a child process: a binary built for another machine may end the process that loads it.
function loads(binary) {
  const child = spawnSync(process.execPath, [
    '-e',
    'require(process.argv[1]).describeOps()',
    binary,
  ])
  return child.status === 0
}

function giveUp(reason) {
  console.warn(
    `nanoweave: ${reason}\n` +
      'nanoweave: installed without its native addon; the planner and the simulator work, engines do not.\n' +
      'nanoweave: with cmake, make and a C++20 compiler at hand run `npm rebuild nanoweave`; `npx nanoweave doctor` says what is missing.',
  )
}

function main() {
  const found = resolveBinary()
  // Only in a clone do sources change; unpacking a package gives files and folders odd times.
  const isClone = fs.existsSync(path.join(root, 'lib'))
  const isCurrent = found !== undefined && (!isClone || isFresh(found, nativeSources))
  if (isCurrent && loads(found)) return

  console.log('nanoweave: no prebuilt addon fits here; compiling it (a few minutes)')
  const build = buildNative('pipe')
  fs.mkdirSync(path.dirname(logFile), { recursive: true })
  fs.writeFileSync(logFile, `${build.stdout}${build.stderr}`)
  if (build.status !== 0) {
    giveUp(`compiling failed; the compiler's output is in ${logFile}`)
    return
  }
  const built = resolveBinary()
  if (built === undefined || !loads(built)) giveUp(`the compiled addon does not load: ${built}`)
}

main()
