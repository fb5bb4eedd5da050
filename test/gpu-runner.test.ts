/** The runner of `npm run test:gpu`: what it makes of failures, crashes and a missing GPU. */

import { spawnSync } from 'node:child_process'
import { expect, it } from 'vitest'
import { loadBinding } from '../lib/native/load.ts'
import { runFile } from './gpu/file-run.ts'

const options = { device: 'gpu:7', pattern: '' }

function run(name: string, milliseconds = 60_000) {
  const deadlineMs = performance.now() + milliseconds
  return runFile({ name: `fixtures/runner/${name}` }, { ...options, deadlineMs })
}

it('goes on after a failure and after a crash, each in a fresh process', async () => {
  const { results, broken, notRun } = await run('mixed')
  expect(results.map(({ name, state }) => `${name}: ${state}`)).toEqual([
    'passes: passed',
    'group > fails: failed',
    'group > passes after a failure (1): passed',
    'group > passes after a failure (2): passed',
    'group > runs on NANOWEAVE_TEST_DEVICE: passed',
    'is skipped: skipped',
  ])
  expect(results[1]!.error).toContain('expected 1 to be 2')
  expect(broken).toEqual([expect.stringContaining('SIGKILL')])
  expect(notRun).toBe(1)
})

it('says so when a hook throws or a file is not there', async () => {
  const hook = await run('hook')
  expect(hook.broken).toEqual([expect.stringContaining('no model')])
  expect(hook).toMatchObject({ notRun: 1, results: [{ name: 'runs', state: 'passed' }] })
  const absent = await run('absent')
  expect(absent.broken.length).toBeGreaterThan(0)
})

it('stops at its time limit', async () => {
  const { broken } = await run('mixed', 1)
  expect(broken).toEqual([expect.stringContaining('its time is over')])
})

it('without a GPU: says why, and fails unless that is allowed', () => {
  const missing = loadBinding().describeDevices().missing.cuda
  if (missing === undefined) return
  const start = (...args: string[]) =>
    spawnSync(process.execPath, ['--import', 'tsx', 'test/gpu/main.ts', ...args], {
      encoding: 'utf8',
    })
  const refused = start()
  expect(refused.status).toBe(3)
  expect(refused.stdout).toContain(missing)
  expect(start('--allow-no-gpu').status).toBe(0)
  expect(start('--files', 'nothing').status).toBe(2)
})
