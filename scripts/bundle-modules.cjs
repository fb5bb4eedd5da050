#!/usr/bin/env node
'use strict'
// Copies the packages that a bundle without npm needs at run time into DEST/node_modules: the
// dependencies of this package but those that only compile, and the test runner without its bundler.
// Usage: node scripts/bundle-modules.cjs DEST

const fs = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const modules = path.join(root, 'node_modules')
const dest = process.argv[2]
if (dest === undefined) {
  process.stderr.write('usage: node scripts/bundle-modules.cjs DEST\n')
  process.exit(2)
}

/** Only needed to compile the addon. */
const buildOnly = new Set(['cmake-js', 'node-addon-api'])
/** Of these a few files are enough. */
const partial = new Map([['vite', ['package.json', 'dist/node/module-runner.js']]])

const manifestOf = (name) =>
  JSON.parse(fs.readFileSync(path.join(modules, name, 'package.json'), 'utf8'))

function copyPackage(name) {
  const from = path.join(modules, name)
  const to = path.join(dest, 'node_modules', name)
  for (const file of partial.get(name) ?? ['.']) {
    fs.cpSync(path.join(from, file), path.join(to, file), {
      recursive: true,
      dereference: true,
      filter: (source) => !/\.(d\.[cm]?ts|map|md)$/.test(source),
    })
  }
}

const { dependencies } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))
const wanted = [
  ...Object.keys(dependencies).filter((name) => !buildOnly.has(name)),
  'vitest',
  '@vitest/runner',
]
const copied = new Set()
while (wanted.length > 0) {
  const name = wanted.pop()
  // Types, and optional packages of other platforms.
  if (copied.has(name) || name.startsWith('@types/') || !fs.existsSync(path.join(modules, name)))
    continue
  copied.add(name)
  copyPackage(name)
  if (!partial.has(name)) wanted.push(...Object.keys(manifestOf(name).dependencies ?? {}))
}
process.stdout.write(`${copied.size} packages\n`)
