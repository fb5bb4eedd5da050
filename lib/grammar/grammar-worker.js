// @ts-check
/**
 * Compiles grammars and follows outputs through them, in a worker thread that pool.ts starts and may
 * end at any time. xgrammar runs as WebAssembly: it answers a malformed grammar by aborting, after
 * which the worker is of no use any more. Plain JavaScript, so that it runs the same from lib/ and
 * from dist/.
 */

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { compileFunction, constants } from 'node:vm'
import { parentPort, workerData } from 'node:worker_threads'

/**
 * @typedef {{ kind: string, pieces: string[], special: number[], stopTokens: number[] }} Vocabulary
 * @typedef {{ mask: Int32Array, matcher: any }} Open
 */

const { vocabulary, vocabSize, maxMemoryBytes, maxCached } = workerData
const port = /** @type {import('node:worker_threads').MessagePort} */ (parentPort)

/** What xgrammar says before it aborts. @type {string[]} */
const said = []

/** Growth beyond the limit fails as if the machine had no more. */
function limitMemory() {
  const { Memory } = /** @type {any} */ (globalThis).WebAssembly
  const grow = Memory.prototype.grow
  Memory.prototype.grow = function (/** @type {number} */ pages) {
    if (this.buffer.byteLength + pages * 65_536 > maxMemoryBytes)
      throw new RangeError('the grammar takes too much memory')
    return grow.call(this, pages)
  }
}

/** The package is a script that calls itself a module; Node runs it as what it is. */
function loadLibrary() {
  const require = createRequire(import.meta.url)
  const file = require.resolve('@mlc-ai/web-xgrammar')
  const run = compileFunction(
    readFileSync(file, 'utf8'),
    ['exports', 'require', 'module', '__filename', '__dirname'],
    { filename: file, importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER },
  )
  const module = { exports: /** @type {any} */ ({}) }
  run.call(module.exports, module.exports, require, module, file, dirname(file))
  return module.exports
}

/**
 * Pieces with bytes that stand nowhere in UTF-8: c0, c1, f5 and above. xgrammar would take some of
 * them for parts of a character. @type {Record<string, RegExp>}
 */
const NEVER_UTF8 = {
  byte_level: /[\u00c0\u00c1\u00f5-\u00ff]/,
  byte_fallback: /^<0x(?:C[01]|F[5-9A-F])>$/i,
}

limitMemory()
for (const level of /** @type {const} */ (['log', 'warn', 'error']))
  console[level] = (/** @type {unknown[]} */ ...words) => {
    if (said.length < 16) said.push(words.map(String).join(' ').slice(0, 1000))
  }
process.removeAllListeners('warning')
const library = loadLibrary()

/** By the special tokens that stay visible. @type {Map<string, Promise<any>>} */
const compilers = new Map()
/** Least recently used first. @type {Map<string, any>} */
const compiled = new Map()
/** @type {Map<number, Open>} */
const open = new Map()

/** @param {string[]} visible */
async function createCompiler(visible) {
  const { kind, pieces, special, stopTokens } = /** @type {Vocabulary} */ (vocabulary)
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

/** @param {string[]} visible */
function compilerFor(visible) {
  const key = JSON.stringify(visible)
  let compiler = compilers.get(key)
  if (compiler === undefined) {
    compiler = createCompiler(visible)
    compilers.set(key, compiler)
  }
  return compiler
}

/** @param {{ key: string, ebnf: string, visible: string[] }} request */
async function compile({ key, ebnf, visible }) {
  const compiler = await compilerFor(visible)
  const grammar = await library.Grammar.fromEBNF(ebnf)
  compiled.set(key, await compiler.compileGrammar(grammar))
  grammar.dispose()
  if (compiled.size > maxCached) {
    const [oldest] = compiled.keys()
    compiled.get(oldest).dispose()
    compiled.delete(oldest)
  }
}

/**
 * `stuck`: no token can come next.
 * @param {Open} entry
 */
async function fillMask({ matcher, mask }) {
  mask.set(await matcher.getNextTokenBitmask())
  return mask.every((word) => word === 0) ? 'stuck' : 'ready'
}

/** @param {{ id: number, key: string, buffer: SharedArrayBuffer }} request */
async function start({ id, key, buffer }) {
  const grammar = compiled.get(key)
  compiled.delete(key)
  compiled.set(key, grammar)
  const matcher = await library.GrammarMatcher.createGrammarMatcher(grammar)
  const entry = { matcher, mask: new Int32Array(buffer) }
  open.set(id, entry)
  return fillMask(entry)
}

/**
 * One token further. `refused`: the grammar does not allow it.
 * @param {number} id
 * @param {number} token
 */
async function accept(id, token) {
  const entry = open.get(id)
  if (entry === undefined) return 'closed'
  if (!entry.matcher.acceptToken(token)) return 'refused'
  return entry.matcher.isTerminated() ? 'ready' : fillMask(entry)
}

/** @param {any} request */
async function serve(request) {
  switch (request.type) {
    case 'prepare':
      await compilerFor([])
      return port.postMessage({ type: 'prepared' })
    case 'compile':
      said.length = 0
      await compile(request)
      return port.postMessage({ type: 'compiled', keys: [...compiled.keys()] })
    case 'start': {
      const state = await start(request)
      return port.postMessage({ type: 'answers', answers: [[request.id, state]] })
    }
    case 'accept': {
      const answers = []
      for (const [id, token] of request.tokens) answers.push([id, await accept(id, token)])
      return port.postMessage({ type: 'answers', answers })
    }
    case 'close':
      open.get(request.id)?.matcher.dispose()
      open.delete(request.id)
  }
}

/** Requests run one after the other. @type {Promise<unknown>} */
let tail = Promise.resolve()
port.on('message', (request) => {
  tail = tail
    .then(() => serve(request))
    .catch((error) => {
      port.postMessage({ type: 'failed', said: [...said], error: String(error) })
    })
})
