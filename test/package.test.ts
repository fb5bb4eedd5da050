/**
 * The package as it is published: packed with the prebuilt addon, installed into an empty project
 * with no scripts and no compiler on the PATH, then imported and required.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { resolveBinary } from '../lib/native/load.ts'

/** The newest glibc symbol version that may be needed: Debian 12, RHEL 9, Ubuntu 22.04. */
const highestGlibc = [2, 34] as const

const platform = `${process.platform}-${process.arch}`
const prebuilt = join('prebuilds', platform, 'nanoweave.node')

let scratch: string
let project: string
let packedFiles: string[]

function run(command: string, args: readonly string[], cwd: string, env = process.env): string {
  return execFileSync(command, args, {
    cwd,
    env,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })
}

/** Package folder with the files that npm packs, and the addon in prebuilds/. */
function stagePackage(): string {
  run(process.execPath, ['scripts/prepare.cjs'], '.')
  const [listing] = JSON.parse(
    run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], '.'),
  ) as [{ files: { path: string }[] }]
  packedFiles = listing.files.map((file) => file.path)
  const folder = join(scratch, 'package')
  for (const file of packedFiles) {
    mkdirSync(join(folder, dirname(file)), { recursive: true })
    copyFileSync(file, join(folder, file))
  }
  // prebuildify's bits: the release build, stripped. A newer local build replaces an old prebuild.
  const built = resolveBinary()
  const isCurrent = existsSync(prebuilt) && statSync(prebuilt).mtimeMs >= statSync(built).mtimeMs
  if (!isCurrent) {
    mkdirSync(join(folder, dirname(prebuilt)), { recursive: true })
    copyFileSync(built, join(folder, prebuilt))
    run('strip', ['--strip-all', join(folder, prebuilt)], '.')
  }
  return folder
}

/** A PATH with node alone: no compiler, no cmake, no npm scripts that could find one. */
function bareEnvironment(): NodeJS.ProcessEnv {
  const bin = join(scratch, 'bin')
  mkdirSync(bin, { recursive: true })
  symlinkSync(process.execPath, join(bin, 'node'))
  return { PATH: bin, HOME: scratch }
}

let bare: NodeJS.ProcessEnv

beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'nanoweave-package-'))
  bare = bareEnvironment()
  const folder = stagePackage()
  const packed = run('npm', ['pack', '--json', '--ignore-scripts'], folder)
  const [{ filename }] = JSON.parse(packed) as [{ filename: string }]
  project = join(scratch, 'project')
  const installed = join(project, 'node_modules', 'nanoweave')
  mkdirSync(installed, { recursive: true })
  writeFileSync(join(project, 'package.json'), '{ "name": "empty", "private": true }\n')
  run('tar', ['xzf', join(folder, filename), '--strip-components=1', '-C', installed], project)
  // Its dependencies, as npm would put them: those that are not for development, from this tree.
  const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8')) as {
    dependencies: Record<string, string>
  }
  for (const name of Object.keys(dependencies)) {
    cpSync(join('node_modules', name), join(project, 'node_modules', name), { recursive: true })
  }
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

function node(source: string, type: 'module' | 'commonjs'): unknown {
  const file = join(project, type === 'module' ? 'main.mjs' : 'main.cjs')
  writeFileSync(file, source)
  return JSON.parse(run(join(bare.PATH!, 'node'), [file], project, bare))
}

describe('what is packed', () => {
  it('has the entries, types, sources to compile from, and the demo model', () => {
    for (const file of [
      'dist/index.js',
      'dist/index.cjs',
      'dist/index.d.ts',
      'dist/cjs/index.d.ts',
      'dist/cli/main.js',
      'dist/tokenizer/template-child.js',
      'CMakeLists.txt',
      'binding.gyp',
      'native/node/addon.cc',
      'scripts/install.cjs',
      'models/tiny-dense/model.safetensors',
      'LICENSE',
      'README.md',
    ]) {
      expect(packedFiles).toContain(file)
    }
  })

  it('has neither tests nor the library sources', () => {
    const strays = packedFiles.filter((file) => /^(test|lib|bench|build|node_modules)\//.test(file))
    expect(strays).toEqual([])
  })

  it('names no registry host in the lock file', () => {
    expect(readFileSync('package-lock.json', 'utf8')).not.toMatch(/"resolved"|https?:\/\/registry/)
  })
})

describe('installed with no compiler', () => {
  const probe = `
    const { devices } = (names.Engine, binding.describeDevices())
    console.log(JSON.stringify({ names: Object.keys(names).sort(), device: devices[0].name }))`

  it('import gives named exports, and the prebuilt addon loads', () => {
    const source = `
      import * as names from 'nanoweave'
      import { createRequire } from 'node:module'
      const file = createRequire(import.meta.url)('node-gyp-build').resolve('node_modules/nanoweave')
      if (!file.includes('prebuilds')) throw new Error(file)
      const binding = createRequire(import.meta.url)(file)
      ${probe}`
    expect(node(source, 'module')).toEqual({
      names: expect.arrayContaining(['ERROR_CODES', 'Engine', 'EngineError']),
      device: 'cpu',
    })
  })

  it('require gives the same names, the same EngineError and the same addon', () => {
    const source = `
      const required = require('nanoweave')
      import('nanoweave').then((imported) => {
        const addons = Object.keys(require.cache).filter((file) => file.endsWith('.node'))
        console.log(JSON.stringify({
          names: Object.keys(required).sort().join() === Object.keys(imported).sort().join(),
          error: required.EngineError === imported.EngineError,
          addons: addons.length,
        }))
      })`
    expect(node(source, 'commonjs')).toEqual({ names: true, error: true, addons: 0 })
  })

  it('both entries run the shipped model on one addon, chat template included', () => {
    const source = `
      const folder = require('node:path').join(__dirname, 'node_modules/nanoweave/models/tiny-dense')
      const ask = async ({ Engine }) => {
        const engine = await Engine.load(folder, { device: 'cpu' })
        try {
          const messages = [{ role: 'user', content: 'Hello!' }]
          return (await engine.complete({ messages, temperature: 0, maxTokens: 8 })).text
        } finally {
          await engine.close()
        }
      }
      const main = async () => {
        const texts = [await ask(require('nanoweave')), await ask(await import('nanoweave'))]
        const addons = Object.keys(require.cache).filter((file) => file.endsWith('.node'))
        console.log(JSON.stringify({ texts, addons: addons.length }))
      }
      main()`
    const { texts, addons } = node(source, 'commonjs') as { texts: string[]; addons: number }
    expect(addons).toBe(1)
    expect(texts[0]!.length).toBeGreaterThan(5)
    expect(texts[1]).toBe(texts[0])
  })

  it('both entries follow a schema: the worker that writes it is found', () => {
    const source = `
      const folder = require('node:path').join(__dirname, 'node_modules/nanoweave/models/tiny-dense')
      const schema = { type: 'object', properties: { a: { type: 'boolean' } }, required: ['a'] }
      const codes = []
      async function ask({ Engine }) {
        const engine = await Engine.load(folder, { threads: 1 })
        try {
          const { text } = await engine.complete({ prompt: 'A', maxTokens: 40, grammar: { schema } })
          const wrong = { prompt: 'A', grammar: { schema: { not: {} } } }
          await engine.complete(wrong).catch((error) => codes.push(error.code))
          return typeof JSON.parse(text).a
        } finally {
          await engine.close()
        }
      }
      async function main() {
        const types = [await ask(require('nanoweave')), await ask(await import('nanoweave'))]
        console.log(JSON.stringify({ types, codes }))
      }
      main()`
    const { types, codes } = node(source, 'commonjs') as { types: string[]; codes: string[] }
    expect(types).toEqual(['boolean', 'boolean'])
    expect(codes).toEqual(['ERR_USAGE', 'ERR_USAGE'])
  })

  it('the command runs', () => {
    const main = join(project, 'node_modules', 'nanoweave', 'dist', 'cli', 'main.js')
    const output = run(join(bare.PATH!, 'node'), [main, 'doctor', '--json'], project, bare)
    const { checks } = JSON.parse(output) as { checks: { name: string; status: string }[] }
    expect(checks.find((check) => check.name === 'native addon')?.status).toBe('ok')
    expect(checks.find((check) => check.name === 'C++ compiler')?.status).toBe('note')
  })

  it('its install script does nothing', () => {
    const installed = join(project, 'node_modules', 'nanoweave')
    const script = join('scripts', 'install.cjs')
    expect(run(join(bare.PATH!, 'node'), [script], installed, bare)).toBe('')
    expect(existsSync(join(installed, 'build'))).toBe(false)
  })

  it('types serve importing and requiring programs', () => {
    const check = `
      const options: EngineOptions = { tensorParallel: 2 }
      export const load = (): Promise<Engine> => Engine.load('model', options)
      export const isEngineError = (e: unknown): boolean => e instanceof EngineError && e.code === 'ERR_USAGE'`
    writeFileSync(
      join(project, 'a.mts'),
      `import { Engine, EngineError, type EngineOptions } from 'nanoweave'\n${check}`,
    )
    writeFileSync(
      join(project, 'b.cts'),
      `import { Engine, EngineError, type EngineOptions } from 'nanoweave'\n${check}`,
    )
    const tsc = join(process.cwd(), 'node_modules', 'typescript', 'bin', 'tsc')
    const flags = ['--noEmit', '--strict', '--module', 'node16', '--target', 'es2022']
    const types = ['--lib', 'es2023,esnext.disposable', '--types', 'node']
    const roots = ['--typeRoots', join(process.cwd(), 'node_modules', '@types')]
    expect(
      run(process.execPath, [tsc, ...flags, ...types, ...roots, 'a.mts', 'b.cts'], project),
    ).toBe('')
  })
})

describe('the prebuilt addon', () => {
  const binary = () => join(project, 'node_modules', 'nanoweave', prebuilt)

  it('exports the two Node-API symbols and nothing else', () => {
    const lines = run('nm', ['-D', '--defined-only', binary()], '.').trim().split('\n')
    expect(lines.map((line) => line.split(/\s+/).at(-1)).sort()).toEqual([
      'napi_register_module_v1',
      'node_api_module_get_api_version_v1',
    ])
  })

  it(`needs no glibc symbol above ${highestGlibc.join('.')}`, () => {
    const symbols = run('objdump', ['-T', binary()], '.')
    const versions = [...symbols.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(
      ([, major, minor]) => Number(major) * 1000 + Number(minor),
    )
    expect(versions.length).toBeGreaterThan(0)
    expect(Math.max(...versions)).toBeLessThanOrEqual(highestGlibc[0] * 1000 + highestGlibc[1])
  })

  it('depends on system libraries only', () => {
    const dynamic = run('objdump', ['-p', binary()], '.')
    const needed = [...dynamic.matchAll(/NEEDED\s+(\S+)/g)].map(([, name]) => name!)
    const system = /^(libc|libm|libgcc_s|libpthread|libdl|librt|ld-linux-x86-64)\.so/
    expect(needed.filter((name) => !system.test(name))).toEqual([])
  })
})

describe('where no binary fits and no compiler is found', () => {
  it('installing succeeds and says so', () => {
    const folder = join(scratch, 'no-binary')
    cpSync(join(project, 'node_modules', 'nanoweave'), folder, { recursive: true })
    rmSync(join(folder, 'prebuilds'), { recursive: true })
    symlinkSync(join(project, 'node_modules'), join(folder, 'node_modules'))
    const { status, stderr } = spawnSync(
      join(bare.PATH!, 'node'),
      [join('scripts', 'install.cjs')],
      { cwd: folder, env: bare, encoding: 'utf8' },
    )
    expect(status).toBe(0)
    expect(stderr).toContain('installed without its native addon')
    expect(existsSync(join(folder, 'build', 'install.log'))).toBe(true)
  })
})
