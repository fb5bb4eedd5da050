/**
 * Runs one test file with vitest's own runner and matchers, but without vitest's workers and
 * transforms, so that compiled tests run on a machine that has Node and nothing else. Started by
 * file-run.ts: `child FILE FIRST PATTERN`; tests before number FIRST are skipped.
 */

import { fileURLToPath, pathToFileURL } from 'node:url'
import { type File, type Suite, startTests, type Test, type VitestRunner } from '@vitest/runner'
import type { TestMessage } from './protocol.ts'

const [file, first, pattern] = process.argv.slice(2)
const firstTest = Number(first)

function tell(message: TestMessage): Promise<void> {
  return new Promise((resolve, reject) => {
    process.send?.(message, (error: Error | null) => (error ? reject(error) : resolve()))
  })
}

function testsOf(suite: Suite): Test[] {
  return suite.tasks.flatMap((task) => (task.type === 'suite' ? testsOf(task) : [task]))
}

/** Suites without a test to run skip their hooks too: those may be costly. */
function skipEmptySuites(suite: Suite): void {
  for (const task of suite.tasks) if (task.type === 'suite') skipEmptySuites(task)
  if (testsOf(suite).every((test) => test.mode === 'skip')) suite.mode = 'skip'
}

function fullName(test: Test): string {
  const names = [test.name]
  for (let suite = test.suite; suite !== undefined; suite = suite.suite) names.unshift(suite.name)
  return names.filter((name) => name !== '').join(' > ')
}

function errorText(result: Test['result'] | Suite['result']): string {
  return (result?.errors ?? []).map(({ message, stack }) => stack ?? message).join('\n')
}

/** Every test of the file to its number. */
let indexOf = new Map<Test, number>()
/** Skipped by the file or the pattern; those after a hook that threw are not among them. */
const skipped = new Set<Test>()

const runner: VitestRunner = {
  config: {
    root: fileURLToPath(new URL('../..', import.meta.url)),
    setupFiles: [],
    name: undefined,
    passWithNoTests: true,
    testNamePattern: pattern === undefined || pattern === '' ? undefined : new RegExp(pattern),
    allowOnly: false,
    sequence: { seed: 0, hooks: 'stack', setupFiles: 'list' },
    chaiConfig: undefined,
    maxConcurrency: 1,
    testTimeout: 60_000,
    hookTimeout: 300_000,
    retry: 0,
    includeTaskLocation: false,
    tags: [],
    tagsFilter: undefined,
    strictTags: false,
  },
  importFile: (path) => import(pathToFileURL(path).href),
  async onCollected(files: File[]) {
    const tests = files.flatMap(testsOf)
    indexOf = new Map(tests.map((test, index) => [test, index]))
    for (const test of tests.slice(0, firstTest)) test.mode = 'skip'
    for (const test of tests.slice(firstTest)) if (test.mode !== 'run') skipped.add(test)
    for (const suite of files) skipEmptySuites(suite)
    await tell({ kind: 'collected', tests: tests.length })
  },
  async onAfterRunTask(test) {
    const index = indexOf.get(test)!
    const { state, duration } = test.result ?? {}
    // A test that skips itself; all skipped ones are reported at the end.
    if (state === 'skip' && index >= firstTest) skipped.add(test)
    if (state === 'skip' || index < firstTest) return
    await tell({
      kind: 'result',
      index,
      name: fullName(test),
      state: state === 'pass' ? 'passed' : 'failed',
      ms: duration ?? 0,
      ...(state === 'fail' && { error: errorText(test.result) }),
    })
  },
}

/** Errors outside of tests: of loading a file, and of hooks. */
function brokenSuites(suite: Suite): string[] {
  const inner = suite.tasks.flatMap((task) => (task.type === 'suite' ? brokenSuites(task) : []))
  return suite.result?.state === 'fail' && (suite.result.errors?.length ?? 0) > 0
    ? [errorText(suite.result), ...inner]
    : inner
}

process.on('disconnect', () => process.exit())
const files = await startTests([file!], runner)
for (const test of skipped) {
  const index = indexOf.get(test)!
  await tell({ kind: 'result', index, name: fullName(test), state: 'skipped', ms: 0 })
}
for (const error of files.flatMap(brokenSuites)) await tell({ kind: 'broken', error })
await tell({ kind: 'done' })
process.disconnect()
