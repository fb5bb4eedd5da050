/** `plan` and `simulate` as a user runs them. */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'

const scratch = mkdtempSync(join(tmpdir(), 'nanoweave-plan-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

function nanoweave(...args: string[]) {
  return spawnSync(process.execPath, ['dist/cli/main.js', ...args], { encoding: 'utf8' })
}

describe('nanoweave plan', () => {
  it('prints one JSON document and writes a page', () => {
    const html = join(scratch, 'plan.html')
    const flags = ['--tp', '8', '--hardware', 'a100', '--tokens', '1024', '--html', html]
    const { status, stdout, stderr } = nanoweave(
      'plan',
      '--preset',
      'llama-2-70b',
      ...flags,
      '--json',
    )
    expect(stderr).toBe('')
    expect(status).toBe(0)
    const { traceEvents, otherData } = JSON.parse(stdout)
    expect(traceEvents.length).toBeGreaterThan(100)
    expect(otherData.decision.serialSeconds).toBeGreaterThan(0)
    expect(readFileSync(html, 'utf8')).toContain('<svg')
  })

  it('plans a folder, on hardware from a file', () => {
    const { stdout } = nanoweave('plan', '--list-presets')
    expect(stdout).toMatch(/mixtral-8x22b.*\n.*h100/s)
    const flags = ['--tp', '2', '--hardware', 'cpu', '--tokens', '64']
    const plan = nanoweave('plan', 'models/tiny-dense', ...flags)
    expect(plan.stdout).toMatch(/decision +serial: .*in turn/)
    const file = join(scratch, 'broken.json')
    writeFileSync(file, '{}')
    const broken = nanoweave('plan', 'models/tiny-dense', '--hardware', file)
    expect(broken.status).toBe(2)
    expect(broken.stderr).toContain('bench --tune')
    const folder = nanoweave('plan', 'models/tiny-dense', '--hardware', scratch)
    expect(folder.stderr).toMatch(
      /cannot read .*: it is a folder; give the path of a file \[ERR_IO\]/,
    )
  })

  it.each([
    [['plan']],
    [['plan', '--preset', 'gpt-9']],
    [['plan', 'models/tiny-dense', '--hardware', 'abacus']],
    [['plan', 'models/tiny-dense', '--tokens', '0']],
    [['simulate', '--preset', 'llama-3-8b', '--trace', 'nowhere']],
    [['simulate', '--preset', 'llama-3-8b', '--rate', '-1']],
  ])('refuses %j with exit code 2', (args) => {
    const { status, stdout } = nanoweave(...args)
    expect(status).toBe(2)
    expect(stdout).toBe('')
  })
})

it('nanoweave simulate prints one JSON document and writes a page', () => {
  const html = join(scratch, 'load.html')
  const flags = [
    '--hardware',
    'l40s',
    '--rate',
    '1,4',
    '--requests',
    '20',
    '--html',
    html,
    '--json',
  ]
  const { status, stdout } = nanoweave('simulate', '--preset', 'llama-3-8b', ...flags)
  expect(status).toBe(0)
  const { points } = JSON.parse(stdout)
  expect(points.map(({ rate }: { rate: number }) => rate)).toEqual([1, 4])
  expect(points[0].simulation.metrics.requests).toBe(20)
  expect(readFileSync(html, 'utf8')).toContain('<svg')
})

it('nanoweave simulate says why the CPU overlaps nothing', () => {
  const html = join(scratch, 'cpu.html')
  const flags = ['--hardware', 'cpu', '--requests', '3', '--rate', '5', '--html', html, '--json']
  const { status, stdout } = nanoweave('simulate', 'models/tiny-dense', ...flags)
  expect(status).toBe(0)
  const facts = new Map(JSON.parse(stdout).facts)
  expect(facts.get('schedule')).toMatch(/^serial: .* in turn/)
  expect(readFileSync(html, 'utf8')).toMatch(/serial: .* in turn/)
})
