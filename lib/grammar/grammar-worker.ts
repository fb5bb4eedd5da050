/**
 * Writes and compiles grammars and follows outputs through them, in a worker thread that pool-worker.ts starts
 * and may end at any time. xgrammar runs as WebAssembly: it answers a malformed grammar by aborting,
 * after which the worker is of no use any more.
 */

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { compileFunction, constants } from 'node:vm'
import { parentPort, workerData } from 'node:worker_threads'
import { EngineError } from '../errors.ts'
import type { Answer, WorkerData, WorkerMessage, WorkerRequest } from './messages.ts'
import { writeGrammar } from './write-grammar.ts'

interface CompiledGrammar {
  dispose(): void
}

interface LibraryMatcher {
  acceptToken(token: number): boolean
  isTerminated(): boolean
  getNextTokenBitmask(): Promise<Int32Array>
  dispose(): void
}

interface GrammarCompiler {
  compileGrammar(grammar: unknown): Promise<CompiledGrammar>
}

/** What is used of xgrammar. */
interface Library {
  readonly TokenizerInfo: {
    createTokenizerInfo(
      pieces: readonly string[],
      kind: string,
      addsPrefixSpace: boolean,
      vocabSize: number,
      stopTokens: readonly number[],
    ): Promise<unknown>
  }
  readonly GrammarCompiler: {
    createGrammarCompiler(info: unknown, isCached: boolean): Promise<GrammarCompiler>
  }
  readonly Grammar: { fromEBNF(ebnf: string): Promise<{ dispose(): void }> }
  readonly GrammarMatcher: {
    createGrammarMatcher(grammar: CompiledGrammar): Promise<LibraryMatcher>
  }
}

interface WebAssemblyMemory {
  readonly buffer: ArrayBuffer
  grow(this: WebAssemblyMemory, pages: number): number
}

interface WithWebAssembly {
  readonly WebAssembly: { readonly Memory: { readonly prototype: WebAssemblyMemory } }
}

interface Open {
  readonly mask: Int32Array
  readonly matcher: LibraryMatcher
}

const { vocabulary, vocabSize, maxMemoryBytes, maxCached } = workerData as WorkerData

const tell = (message: WorkerMessage): void => parentPort?.postMessage(message)

/** What xgrammar says before it aborts. */
const said: string[] = []

/** Growth beyond the limit fails as if the machine had no more. */
function limitMemory(): void {
  const { prototype } = (globalThis as unknown as WithWebAssembly).WebAssembly.Memory
  const { grow } = prototype
  prototype.grow = function (pages) {
    if (this.buffer.byteLength + pages * 65_536 > maxMemoryBytes)
      throw new RangeError('the grammar takes too much memory')
    return grow.call(this, pages)
  }
}

/** The package is a script that calls itself a module; Node runs it as what it is. */
function loadLibrary(): Library {
  const require = createRequire(import.meta.url)
  const file = require.resolve('@mlc-ai/web-xgrammar')
  const run = compileFunction(
    readFileSync(file, 'utf8'),
    ['exports', 'require', 'module', '__filename', '__dirname'],
    { filename: file, importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER },
  )
  const module = { exports: {} }
  run.call(module.exports, module.exports, require, module, file, dirname(file))
  return module.exports as Library
}

/**
 * Pieces with bytes that stand nowhere in UTF-8: c0, c1, f5 and above. xgrammar would take some of
 * them for parts of a character.
 */
const NEVER_UTF8: Readonly<Record<string, RegExp>> = {
  byte_level: /[\u00c0\u00c1\u00f5-\u00ff]/,
  byte_fallback: /^<0x(?:C[01]|F[5-9A-F])>$/i,
}

limitMemory()
for (const level of ['log', 'warn', 'error'] as const)
  console[level] = (...words: unknown[]) => {
    if (said.length < 16) said.push(words.map(String).join(' ').slice(0, 1000))
  }
process.removeAllListeners('warning')
const library = loadLibrary()

/** By the special tokens that stay visible. */
const compilers = new Map<string, Promise<GrammarCompiler>>()
/** Least recently used first. */
const compiled = new Map<string, CompiledGrammar>()
const open = new Map<number, Open>()
/** EBNF that is to be compiled next. */
let written = ''

async function createCompiler(visible: readonly string[]): Promise<GrammarCompiler> {
  const { kind, pieces, special, stopTokens } = vocabulary
  const shown = [...pieces]
  // A token without text is one that no grammar can ask for.
  for (const id of special) if (!visible.includes(pieces[id] ?? '')) shown[id] = ''
  pieces.forEach((piece, id) => {
    if (NEVER_UTF8[kind]?.test(piece) && !special.includes(id)) shown[id] = ''
  })
  const info = await library.TokenizerInfo.createTokenizerInfo(
    shown,
    kind,
    false,
    vocabSize,
    stopTokens,
  )
  return library.GrammarCompiler.createGrammarCompiler(info, false)
}

function compilerFor(visible: readonly string[]): Promise<GrammarCompiler> {
  const key = JSON.stringify(visible)
  let compiler = compilers.get(key)
  if (compiler === undefined) {
    compiler = createCompiler(visible)
    compilers.set(key, compiler)
  }
  return compiler
}

async function compile(key: string, ebnf: string, visible: readonly string[]): Promise<void> {
  const compiler = await compilerFor(visible)
  const grammar = await library.Grammar.fromEBNF(ebnf)
  compiled.set(key, await compiler.compileGrammar(grammar))
  grammar.dispose()
  if (compiled.size > maxCached) {
    const [[oldest, grammarOfOldest]] = compiled
    grammarOfOldest.dispose()
    compiled.delete(oldest)
  }
}

/** `stuck`: no token can come next. */
async function fillMask({ matcher, mask }: Open): Promise<'stuck' | 'ready'> {
  mask.set(await matcher.getNextTokenBitmask())
  // Beyond the vocabulary the library may allow anything.
  const numLast = vocabSize % 32
  if (numLast > 0) mask[mask.length - 1] &= 2 ** numLast - 1
  return mask.every((word) => word === 0) ? 'stuck' : 'ready'
}

async function start(id: number, key: string, buffer: SharedArrayBuffer): Promise<string> {
  const grammar = compiled.get(key)
  if (grammar === undefined) return 'forgotten'
  compiled.delete(key)
  compiled.set(key, grammar)
  const matcher = await library.GrammarMatcher.createGrammarMatcher(grammar)
  const entry = { matcher, mask: new Int32Array(buffer) }
  open.set(id, entry)
  return fillMask(entry)
}

/** One token further. `refused`: the grammar does not allow it. */
async function accept(id: number, token: number): Promise<string> {
  const entry = open.get(id)
  if (entry === undefined) return 'closed'
  if (!entry.matcher.acceptToken(token)) return 'refused'
  return entry.matcher.isTerminated() ? 'ready' : fillMask(entry)
}

async function serve(request: WorkerRequest): Promise<void> {
  switch (request.type) {
    case 'prepare':
      await compilerFor([])
      return tell({ type: 'prepared' })
    case 'write':
      written = writeGrammar(JSON.parse(request.source))
      return tell({ type: 'written' })
    case 'compile':
      said.length = 0
      await compile(request.key, written, request.visible)
      written = ''
      return tell({ type: 'compiled', keys: [...compiled.keys()] })
    case 'start': {
      const state = await start(request.id, request.key, request.buffer)
      return tell({ type: 'answers', answers: [[request.id, state]] })
    }
    case 'accept': {
      const answers: Answer[] = []
      for (const [id, token] of request.tokens) answers.push([id, await accept(id, token)])
      return tell({ type: 'answers', answers })
    }
    case 'close':
      open.get(request.id)?.matcher.dispose()
      open.delete(request.id)
  }
}

function tellFailure(error: unknown): void {
  // Refused before it came to the library, which is as good as before.
  if (error instanceof EngineError)
    tell({ type: 'refused', message: error.message, param: error.param })
  else tell({ type: 'failed', said: [...said], error: String(error) })
}

/** Requests run one after the other. */
let tail: Promise<void> = Promise.resolve()
parentPort?.on('message', (request: WorkerRequest) => {
  tail = tail.then(() => serve(request)).catch(tellFailure)
})
