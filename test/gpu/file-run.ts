/**
 * One test file in processes of its own. A fault on a GPU spoils every later call of its process, so
 * the first failed test ends the process, and a fresh one goes on after it.
 */

import { type ChildProcess, fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { TestMessage, TestResult } from './protocol.ts'
import type { SuiteFile } from './suite.ts'

/** More failures than this say nothing new. */
const MAX_PROCESSES = 40

/** A sibling of this file: .ts from sources, .js when compiled. */
function scriptOf(name: string): string {
  const compiled = fileURLToPath(new URL(`${name}.js`, import.meta.url))
  return existsSync(compiled) ? compiled : compiled.replace(/\.js$/, '.ts')
}

export interface FileOptions {
  readonly device: string
  /** Regular expression that names of tests must match; empty: all. */
  readonly pattern: string
  /** Milliseconds since start by which the file must be over. */
  readonly deadlineMs: number
}

export interface FileResult {
  readonly file: string
  readonly results: readonly TestResult[]
  /** Failures outside of tests. */
  readonly broken: readonly string[]
  /** Tests of the file that no process got to. */
  readonly notRun: number
}

interface Attempt {
  readonly results: TestResult[]
  readonly broken: string[]
  tests: number
  finished: boolean
}

/** Runs the tests from number `first` on, up to the end or the first failure. */
function runFrom(script: string, first: number, options: FileOptions): Promise<Attempt> {
  const attempt: Attempt = { results: [], broken: [], tests: 0, finished: false }
  const child: ChildProcess = fork(scriptOf('child'), [script, String(first), options.pattern], {
    env: { ...process.env, NANOWEAVE_TEST_DEVICE: options.device },
    execArgv: script.endsWith('.ts') ? ['--import', 'tsx'] : [],
    stdio: ['ignore', 2, 2, 'ipc'],
  })
  const left = Math.max(1, options.deadlineMs - performance.now())
  const timer = setTimeout(() => {
    attempt.broken.push('stopped: its time is over')
    child.kill('SIGKILL')
  }, left)
  child.on('message', (message: TestMessage) => {
    if (message.kind === 'collected') attempt.tests = message.tests
    else if (message.kind === 'broken') attempt.broken.push(message.error)
    else if (message.kind === 'done') attempt.finished = true
    else {
      attempt.results.push(message)
      if (message.state === 'failed') child.kill('SIGKILL')
    }
  })
  return new Promise((resolve) => {
    child.on('exit', (status, signal) => {
      clearTimeout(timer)
      const failed = attempt.results.some(({ state }) => state === 'failed')
      if (!attempt.finished && !failed && attempt.broken.length === 0) {
        const how = signal === null ? `with status ${status}` : `by ${signal}`
        attempt.broken.push(`the process ended ${how} before its tests did`)
      }
      resolve(attempt)
    })
  })
}

export async function runFile(
  { name }: Pick<SuiteFile, 'name'>,
  options: FileOptions,
): Promise<FileResult> {
  const script = scriptOf(`../${name}`)
  const results: TestResult[] = []
  const broken: string[] = []
  let next = 0
  let tests = 0
  for (let count = 0; count < MAX_PROCESSES; count++) {
    const attempt = await runFrom(script, next, options)
    results.push(...attempt.results)
    broken.push(...attempt.broken)
    tests = Math.max(tests, attempt.tests)
    // Where a process dies between two tests, the test it was in is the one after the last result.
    const last = attempt.results.at(-1)?.index ?? next - 1
    const died = attempt.broken.length > 0
    next = last + (died ? 2 : 1)
    const timeIsOver = performance.now() >= options.deadlineMs
    if (attempt.finished || attempt.tests === 0 || timeIsOver || next >= tests) break
  }
  return { file: name, results, broken, notRun: Math.max(0, tests - results.length) }
}
