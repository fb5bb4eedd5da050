/** Arrows point downward only: reads every import in lib and every include in native. */

import { readdirSync, readFileSync } from 'node:fs'
import { join, posix, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** Files below `folder` with one of the endings, relative to the repository. */
function filesOf(folder: string, ...endings: string[]): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && endings.some((ending) => entry.name.endsWith(ending)))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)))
    .sort()
}

const read = (file: string) => readFileSync(join(ROOT, file), 'utf8')

// ---- TypeScript ----

/**
 * What each folder of lib may import: other folders, or single files of them. A folder that is not
 * named here may not exist.
 */
const LIB_ARROWS: Readonly<Record<string, readonly string[]>> = {
  kv: [],
  parallel: [],
  ops: ['program/types.ts'],
  program: ['ops'],
  weights: ['program/types.ts'],
  scheduler: ['kv'],
  workload: [],
  models: ['ops', 'parallel', 'program', 'weights'],
  planner: ['ops', 'program'],
  simulator: ['kv', 'ops', 'planner', 'program', 'scheduler', 'workload'],
  native: ['ops'],
  tokenizer: ['weights/json.ts'],
  grammar: [],
  engine: [
    'grammar',
    'models',
    'native',
    'parallel',
    'planner',
    'program',
    'scheduler',
    'tokenizer',
    'weights/json.ts',
  ],
  server: ['engine', 'grammar', 'tokenizer'],
  bench: [
    'engine',
    'models',
    'native',
    'ops',
    'parallel',
    'planner',
    'program',
    'weights',
    'workload',
  ],
  cli: [
    'bench',
    'engine',
    'models',
    'native',
    'parallel',
    'planner',
    'program',
    'scheduler',
    'server',
    'simulator',
    'tokenizer',
    'weights',
    'workload',
  ],
}

/** Folders whose code sees no clock, no promise, no module of Node and no package. */
const PURE = ['kv', 'parallel', 'planner', 'program', 'scheduler', 'ops', 'workload']
const IMPURE =
  /\b(Promise|async|await|setTimeout|setInterval|setImmediate|queueMicrotask|process|performance)\b|\bDate\b|Math\.random/

interface Import {
  readonly from: string
  /** Relative imports: path from the root of the repository; else the module's name. */
  readonly to: string
  readonly isRelative: boolean
}

function importsOf(file: string, text = read(file)): Import[] {
  const found: Import[] = []
  const pattern =
    /(?:^|\n)\s*(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]|(?:^|\n)\s*import\s*['"]([^'"]+)['"]|\b(?:import|require)\s*\(\s*['"]([^'"]+)['"]/g
  for (const match of text.matchAll(pattern)) {
    const name = match[1] ?? match[2] ?? match[3]
    const isRelative = name.startsWith('.')
    const to = isRelative ? posix.normalize(posix.join(posix.dirname(file), name)) : name
    found.push({ from: file, to, isRelative })
  }
  return found
}

/** Why an import is forbidden, or undefined. */
function libProblem({ from, to, isRelative }: Import): string | undefined {
  const [, layer, inner] = from.split('/')
  const problem = `${from} must not import ${to}`
  if (!isRelative) return PURE.includes(layer) ? problem : undefined
  if (!to.startsWith('lib/')) return problem
  const [, target, targetInner] = to.split('/')
  // lib/index.ts: the public face.
  if (inner === undefined) return ['engine', 'errors.ts'].includes(target) ? undefined : problem
  if (targetInner === undefined) return target === 'errors.ts' ? undefined : problem
  if (target === layer) return undefined
  const allowed = LIB_ARROWS[layer] ?? []
  const path = to.slice('lib/'.length)
  return allowed.includes(target) || allowed.includes(path) ? undefined : problem
}

const code = (text: string) =>
  text
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/(^|\s)\/\/.*$/gm, '')
    .replace(/'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`/g, "''")

describe('lib', () => {
  const files = filesOf('lib', '.ts', '.js', '.cts', '.mts')
  const imports = files.flatMap((file) => importsOf(file))

  it('has only folders that the rules know', () => {
    const folders = new Set(
      files
        .map((file) => file.split('/'))
        .filter((path) => path.length > 2)
        .map((path) => path[1]),
    )
    expect([...folders].filter((folder) => !Object.hasOwn(LIB_ARROWS, folder))).toEqual([])
  })

  it('imports downward only', () => {
    expect(imports.length).toBeGreaterThan(100)
    expect(imports.map(libProblem).filter((problem) => problem !== undefined)).toEqual([])
  })

  it('keeps the addon out of the control plane', () => {
    const reached = (start: string): Set<string> => {
      const seen = new Set<string>()
      const queue = files.filter((file) => file.startsWith(`lib/${start}/`))
      for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
        if (seen.has(file)) continue
        seen.add(file)
        for (const edge of imports) if (edge.from === file && edge.isRelative) queue.push(edge.to)
      }
      return seen
    }
    for (const start of ['scheduler', 'kv', 'program', 'ops', 'models', 'planner', 'parallel'])
      expect([...reached(start)].filter((file) => file.startsWith('lib/native/'))).toEqual([])
  })

  it('has pure layers that see neither clock nor promise', () => {
    const impure = files
      .filter((file) => PURE.includes(file.split('/')[1]))
      .flatMap((file) => {
        const found = IMPURE.exec(code(read(file)))
        return found === null ? [] : [`${file}: ${found[0]}`]
      })
    expect(impure).toEqual([])
  })

  it('would notice', () => {
    const problem = (from: string, text: string) => importsOf(from, text).map(libProblem)[0]
    expect(
      problem('lib/scheduler/a.ts', "import type { X } from '../native/binding.ts'"),
    ).toBeDefined()
    expect(problem('lib/kv/a.ts', "import { now } from 'node:perf_hooks'")).toBeDefined()
    expect(
      problem('lib/program/passes/a.ts', "export {\n  x,\n} from '../../models/index.ts'"),
    ).toBeDefined()
    expect(problem('lib/engine/a.ts', "const x = await import('../server/http.ts')")).toBeDefined()
    expect(problem('lib/ops/a.ts', "import { x } from '../program/builder.ts'")).toBeDefined()
    expect(problem('lib/index.ts', "export * from './cli/main.ts'")).toBeDefined()
    expect(problem('lib/engine/a.ts', "import '../scheduler/scheduler.ts'")).toBeUndefined()
    expect(
      problem('lib/program/passes/a.ts', "import { x } from '../../ops/index.ts'"),
    ).toBeUndefined()
    expect(IMPURE.test(code('const later = new Promise(() => {})'))).toBe(true)
    expect(IMPURE.test(code("// no Promise\nconst text = 'async'"))).toBe(false)
  })
})

// ---- C++ ----

/** What each folder of native may include: other folders, or single headers of them. */
const NATIVE_ARROWS: Readonly<Record<string, readonly string[]>> = {
  core: [],
  comm: ['core'],
  cpu: ['core'],
  program: ['core'],
  cuda: ['comm', 'core', 'ops/op.h', 'program'],
  // A stand-alone program that compares CUDA kernels with the host's.
  'cuda/check': ['comm', 'core', 'cpu', 'cuda', 'ops', 'program'],
  ops: ['comm', 'core', 'cpu', 'cuda', 'program'],
  runtime: ['comm', 'core', 'cpu', 'cuda', 'ops', 'program'],
  node: ['core', 'cpu', 'cuda/libraries.h', 'ops', 'runtime'],
  // Runs recorded programs without Node, for the sanitizers and the fuzzer.
  driver: ['comm', 'core', 'cpu', 'ops', 'program', 'runtime'],
}

function layerOf(file: string): string {
  const folder = posix.dirname(file).slice('native/'.length)
  if (Object.hasOwn(NATIVE_ARROWS, folder)) return folder
  return folder.split('/')[0]
}

function includeProblems(file: string, text = read(file)): string[] {
  const problems: string[] = []
  for (const [, open, name] of text.matchAll(/^\s*#\s*include\s*([<"])([^>"]+)[>"]/gm)) {
    const problem = `${file} must not include ${name}`
    if (/^(node_)?n?api(\.|-|_)|^node_api|^uv\.h|^v8/.test(name)) {
      if (layerOf(file) !== 'node') problems.push(problem)
      continue
    }
    if (open === '<') continue
    const [target] = name.split('/')
    if (!name.includes('/') || target === layerOf(file).split('/')[0]) continue
    const allowed = NATIVE_ARROWS[layerOf(file)] ?? []
    if (!allowed.includes(target) && !allowed.includes(name)) problems.push(problem)
  }
  return problems
}

describe('native', () => {
  const files = filesOf('native', '.h', '.cc', '.cu', '.cuh')

  it('has only folders that the rules know', () => {
    expect(files.filter((file) => !Object.hasOwn(NATIVE_ARROWS, layerOf(file)))).toEqual([])
  })

  it('includes downward only, and napi.h in node/ alone', () => {
    expect(files.length).toBeGreaterThan(40)
    expect(files.flatMap((file) => includeProblems(file))).toEqual([])
  })

  it('would notice', () => {
    expect(includeProblems('native/core/a.h', '#include "runtime/backend.h"')).toHaveLength(1)
    expect(includeProblems('native/ops/a.cc', '#include <napi.h>')).toHaveLength(1)
    expect(includeProblems('native/runtime/a.cc', '#include "node_api.h"')).toHaveLength(1)
    expect(includeProblems('native/program/a.cc', '#include "ops/op.h"')).toHaveLength(1)
    expect(includeProblems('native/node/a.cc', '#include <napi.h>')).toEqual([])
    expect(
      includeProblems('native/ops/a.cc', '#include "cpu/matmul.h"\n#include <vector>'),
    ).toEqual([])
  })
})
