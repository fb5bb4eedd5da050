/** `nanoweave serve` as a user runs it: signals, exit codes, a port that is taken. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import { eventsOf, post, send } from './support.ts'

const children: ChildProcess[] = []

beforeAll(() => {
  execFileSync(process.execPath, ['scripts/prepare.cjs'], { stdio: 'inherit' })
})
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

interface Served {
  readonly child: ChildProcess
  readonly exited: Promise<number | null>
  readonly log: () => string
  /** Undefined: it ended before it listened. */
  readonly url: string | undefined
}

async function serve(...args: readonly string[]): Promise<Served> {
  const all = ['dist/cli/main.js', 'serve', 'models/tiny-dense', '--threads', '2', ...args]
  const child = spawn(process.execPath, all, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NANOWEAVE_API_KEY: 'from-environment' },
  })
  children.push(child)
  let log = ''
  const exited = new Promise<number | null>((resolve) => child.once('close', resolve))
  const url = new Promise<string>((resolve) => {
    child.stderr!.on('data', (data: Buffer) => {
      log += data.toString()
      const found = /tiny-dense at (\S+)/.exec(log)
      if (found !== null) resolve(found[1])
    })
  })
  return {
    child,
    exited,
    log: () => log,
    url: await Promise.race([url, exited.then(() => undefined)]),
  }
}

const LONG = { prompt: 'Once upon a time', max_tokens: 1500, ignore_eos: true, stream: true }
const KEY = { authorization: 'Bearer from-environment' }

/** Streams that have begun; each resolves with its last event. */
async function startStreams(url: string, count: number): Promise<Promise<string>[]> {
  const replies = Array.from({ length: count }, () =>
    post(`${url}/v1/completions`, LONG, KEY).then(({ text }) => eventsOf(text).at(-1) ?? ''),
  )
  const running = async () => (await send(`${url}/stats`)).text
  while (!(await running()).includes(`"running":${count}`))
    await new Promise((resolve) => setTimeout(resolve, 10))
  return replies
}

describe('nanoweave serve', () => {
  it('drains on SIGTERM under load and exits with 0', async () => {
    const { child, exited, url, log } = await serve('--port', '0')
    const streams = await startStreams(url!, 4)
    child.kill('SIGTERM')
    expect(await Promise.all(streams)).toEqual(['[DONE]', '[DONE]', '[DONE]', '[DONE]'])
    expect(await exited).toBe(0)
    expect(log()).not.toContain('from-environment')
  })

  it('ends what outlasts the drain with an error, and exits with 0', async () => {
    const { child, exited, url } = await serve('--port', '0', '--drain', '0')
    const streams = await startStreams(url!, 2)
    child.kill('SIGTERM')
    for (const last of await Promise.all(streams))
      expect(JSON.parse(last).error.code).toBe('shutting_down')
    expect(await exited).toBe(0)
  })

  it('ends at once on the second signal', async () => {
    const { child, exited, url, log } = await serve('--port', '0')
    const streams = Promise.allSettled(await startStreams(url!, 2))
    child.kill('SIGTERM')
    while (!log().includes('draining')) await new Promise((resolve) => setTimeout(resolve, 5))
    child.kill('SIGTERM')
    expect(await exited).toBe(130)
    await streams
  })

  it('says that a port is taken, with exit code 1', async () => {
    const first = await serve('--port', '0')
    const second = await serve('--port', new URL(first.url!).port)
    expect(second.url).toBe(undefined)
    expect(await second.exited).toBe(1)
    expect(second.log()).toContain('ERR_IO')
    expect((await send(`${first.url}/health`)).status).toBe(200)
    first.child.kill('SIGTERM')
    expect(await first.exited).toBe(0)
  })

  it('refuses unknown tool formats: exit code 2', async () => {
    const { exited, log } = await serve('--port', '0', '--tool-format', 'yaml')
    expect(await exited).toBe(2)
    expect(log()).toContain('ERR_USAGE')
  })
})
