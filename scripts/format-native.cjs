#!/usr/bin/env node
'use strict'
// clang-format over native/: checks, or rewrites with --fix.

const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const packageFile = require.resolve('clang-format-node/package.json')
const cli = path.join(path.dirname(packageFile), require(packageFile).bin['clang-format'])

const files = fs
  .readdirSync(path.join(root, 'native'), { recursive: true })
  .filter((name) => /\.(h|cc|cu|cuh)$/.test(name))
  .map((name) => path.join('native', name))
  .sort()

const mode = process.argv.includes('--fix') ? ['-i'] : ['--dry-run', '-Werror']
const child = spawnSync(process.execPath, [cli, ...mode, ...files], { cwd: root, stdio: 'inherit' })
process.exitCode = child.status ?? 1
