#!/usr/bin/env node
'use strict'
// Builds dist/ from lib/: ES modules and types by tsc, and the CommonJS entry by esbuild. Does
// nothing when dist/ is newer than lib/. Types are not checked here (`npm run check` does).
//
// Both entries share one EngineError: it lives in errors.cjs, which the bundle requires and
// which errors.js re-exports; the addon itself is shared through Node's module cache.

const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const path = require('node:path')
const { isFresh } = require('./freshness.cjs')

const root = path.join(__dirname, '..')
const lib = path.join(root, 'lib')
const dist = path.join(root, 'dist')
const lock = path.join(root, 'dist.lock')
const lastWritten = path.join(dist, 'index.cjs')
const sources = [
  'lib',
  'package.json',
  'tsconfig.json',
  'tsconfig.build.json',
  'scripts/prepare.cjs',
]
const lockTimeoutMs = 120_000

function resolveOrUndefined(request) {
  try {
    return require.resolve(request, { paths: [root] })
  } catch {
    return undefined
  }
}

function emitModules(tscPackage, outDir) {
  const tsc = path.join(path.dirname(tscPackage), 'bin', 'tsc')
  const args = [tsc, '-p', path.join(root, 'tsconfig.build.json'), '--outDir', outDir]
  const child = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
  if (child.status !== 0) throw new Error(`tsc exited with ${child.status}`)
  fs.chmodSync(path.join(outDir, 'cli', 'main.js'), 0o755)
}

// A module's own address: the bundle moves code out of its folder, workers are found by it.
function moduleUrlPlugin() {
  return {
    name: 'module-url',
    setup(build) {
      build.onLoad({ filter: /\.ts$/ }, (args) => {
        const relative = path
          .relative(lib, args.path)
          .replaceAll(path.sep, '/')
          .replace(/\.ts$/, '.js')
        const contents = fs
          .readFileSync(args.path, 'utf8')
          .replaceAll('import.meta.url', `moduleUrl(${JSON.stringify(`./${relative}`)})`)
        return { contents, loader: 'ts' }
      })
    },
  }
}

function externalErrorsPlugin() {
  return {
    name: 'external-errors',
    setup(build) {
      build.onResolve({ filter: /\/errors\.ts$/ }, (args) =>
        path.resolve(args.resolveDir, args.path) === path.join(lib, 'errors.ts')
          ? { path: './errors.cjs', external: true }
          : undefined,
      )
    },
  }
}

async function emitCommonJs(esbuild, outDir) {
  const common = {
    bundle: true,
    format: 'cjs',
    platform: 'node',
    target: 'node20',
    logLevel: 'warning',
  }
  await esbuild.build({
    ...common,
    entryPoints: [path.join(lib, 'errors.ts')],
    outfile: path.join(outDir, 'errors.cjs'),
  })
  const { ERROR_CODES, EngineError } = require(path.join(outDir, 'errors.cjs'))
  if (ERROR_CODES === undefined || EngineError === undefined)
    throw new Error('errors.cjs lacks its exports')
  fs.writeFileSync(
    path.join(outDir, 'errors.js'),
    `export { ${Object.keys(require(path.join(outDir, 'errors.cjs'))).join(', ')} } from './errors.cjs'\n`,
  )
  await esbuild.build({
    ...common,
    entryPoints: [path.join(lib, 'index.ts')],
    outfile: path.join(outDir, 'index.cjs'),
    packages: 'external',
    banner: {
      js: "const moduleUrl = (file) => new URL(file, require('node:url').pathToFileURL(__filename)).href;",
    },
    plugins: [moduleUrlPlugin(), externalErrorsPlugin()],
  })
}

// TypeScript reads a declaration as CommonJS or ESM by its folder: `require` gets a copy of them.
function copyTypes(outDir) {
  const target = path.join(outDir, 'cjs')
  for (const name of fs.readdirSync(outDir, { recursive: true })) {
    if (!name.endsWith('.d.ts')) continue
    fs.mkdirSync(path.dirname(path.join(target, name)), { recursive: true })
    fs.copyFileSync(path.join(outDir, name), path.join(target, name))
  }
  fs.writeFileSync(path.join(target, 'package.json'), '{ "type": "commonjs" }\n')
}

async function withLock(work) {
  const deadline = Date.now() + lockTimeoutMs
  for (;;) {
    try {
      fs.mkdirSync(lock)
      break
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
      // A build takes seconds: a lock this old was left by one that was killed.
      if (Date.now() > deadline) fs.rmSync(lock, { recursive: true, force: true })
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  try {
    await work()
  } finally {
    fs.rmSync(lock, { recursive: true, force: true })
  }
}

const isBuilt = () =>
  isFresh(
    lastWritten,
    sources.map((name) => path.join(root, name)),
  )

async function main() {
  if (isBuilt()) return
  const tscPackage = resolveOrUndefined('typescript/package.json')
  const esbuildPath = resolveOrUndefined('esbuild')
  if (tscPackage === undefined || esbuildPath === undefined) {
    console.warn(
      'nanoweave: dist/ is not built: the development dependencies are missing (npm install)',
    )
    return
  }
  await withLock(async () => {
    if (isBuilt()) return
    const staging = fs.mkdtempSync(path.join(root, 'build-dist-'))
    try {
      emitModules(tscPackage, staging)
      copyTypes(staging)
      await emitCommonJs(require(esbuildPath), staging)
      fs.rmSync(dist, { recursive: true, force: true })
      fs.renameSync(staging, dist)
    } finally {
      fs.rmSync(staging, { recursive: true, force: true })
    }
  })
}

main().catch((error) => {
  console.error(`nanoweave: building dist/ failed: ${error.message}`)
  process.exitCode = 1
})
