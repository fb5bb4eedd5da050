/** The command line as a user runs it: dist/cli/main.js in a child process. */

import { execFileSync, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { readTensorIndex } from '../lib/weights/safetensors.ts'

const main = 'dist/cli/main.js'
const model = 'models/tiny-dense'

interface Outcome {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

interface RunOptions {
  readonly input?: string
  readonly env?: NodeJS.ProcessEnv
  /** Called with every piece of stdout. */
  readonly onOutput?: (child: ReturnType<typeof spawn>, stdout: string) => void
}

function nanoweave(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  const child = spawn(process.execPath, [main, ...args], {
    env: { ...process.env, ...options.env },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (data: Buffer) => {
    stdout += data.toString()
    options.onOutput?.(child, stdout)
  })
  child.stderr.on('data', (data: Buffer) => {
    stderr += data.toString()
  })
  child.stdin.end(options.input ?? '')
  return new Promise((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
  })
}

interface ExpectedCase {
  readonly prompt?: string
  readonly messages?: readonly { role: string; content: string }[]
  readonly tools?: unknown
  readonly prompt_ids: number[]
  readonly greedy_ids: number[]
  readonly text: string
}

let scratch: string
let cases: readonly ExpectedCase[]

beforeAll(async () => {
  execFileSync(process.execPath, ['scripts/prepare.cjs'], { stdio: 'inherit' })
  scratch = await mkdtemp(join(tmpdir(), 'nanoweave-cli-'))
  cases = (
    JSON.parse(await readFile(`${model}/expected.json`, 'utf8')) as { cases: ExpectedCase[] }
  ).cases
})
afterAll(() => rm(scratch, { recursive: true, force: true }))

describe('help and usage', () => {
  it('--help fits a screen, on stdout', async () => {
    for (const args of [
      ['--help'],
      ['generate', '--help'],
      ['chat', '--help'],
      ['demo', '--help'],
    ]) {
      const { code, stdout, stderr } = await nanoweave(args)
      expect(code).toBe(0)
      expect(stderr).toBe('')
      const lines = stdout.trimEnd().split('\n')
      expect(lines.length, args.join(' ')).toBeGreaterThan(10)
      expect(lines.length, args.join(' ')).toBeLessThanOrEqual(40)
      for (const line of lines) expect(line.length).toBeLessThanOrEqual(100)
    }
  })

  it('prints its version', async () => {
    const { version } = JSON.parse(await readFile('package.json', 'utf8')) as { version: string }
    expect(await nanoweave(['--version'])).toMatchObject({ code: 0, stdout: `${version}\n` })
  })

  it.each([
    [[]],
    [['frobnicate']],
    [['generate']],
    [['generate', model]],
    [['generate', model, '--prompt', 'a', '--chat', 'b']],
    [['generate', model, '--prompt', 'a', '--tp', 'many']],
    [['generate', model, '--prompt', 'a', '--nano-batches', '5']],
    [['generate', model, '--prompt', 'a', '--device', 'abacus']],
    [['generate', model, '--prompt', 'a', '--frobnicate']],
    [['generate', model, '--prompt', 'a', '--temperature', '-1']],
    [['score', model]],
    [['score', model, '--tokens', '1,x']],
    [['score', model, '--tokens', '1,999999']],
  ])('%j is a usage error: code 2, nothing on stdout', async (args) => {
    const { code, stdout, stderr } = await nanoweave(args)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).not.toBe('')
  })
})

describe('failures', () => {
  it('an unknown model folder: code 1, naming it', async () => {
    const { code, stdout, stderr } = await nanoweave(['generate', 'no/such', '--prompt', 'a'])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain('ERR_MODEL_NOT_FOUND')
    expect(stderr).toContain(join('no', 'such'))
  })

  it.each([
    ['a layout that does not fit', ['--tp', '3'], 'ERR_UNSUPPORTED_LAYOUT'],
    ['a device that is not there', ['--devices', 'cuda:99'], 'ERR_NO_DEVICE'],
  ])('%s: code 3', async (_, flags, error) => {
    const { code, stdout, stderr } = await nanoweave(['generate', model, '--prompt', 'a', ...flags])
    expect({ code, stdout }).toEqual({ code: 3, stdout: '' })
    expect(stderr).toContain(error)
  })

  it('no addon: code 3', async () => {
    const env = { NANOWEAVE_BINARY: join(scratch, 'absent.node') }
    const { code, stderr } = await nanoweave(['generate', model, '--prompt', 'a'], { env })
    expect(code).toBe(3)
    expect(stderr).toContain('ERR_NO_BINARY')
  })
})

describe('generate', () => {
  it('streams text to stdout and figures to stderr', async () => {
    const { prompt, text } = cases.find((entry) => entry.prompt !== undefined)!
    const { code, stdout, stderr } = await nanoweave([
      ...['generate', model, '--prompt', prompt!, '--temperature', '0', '--precision', 'f32'],
    ])
    expect(code).toBe(0)
    expect(stdout).toBe(`${text}\n`)
    expect(stderr).toContain('tokens/s')
  })

  it('--json is one document with the generated ids only', async () => {
    const { prompt, greedy_ids: ids, text } = cases.find((entry) => entry.prompt !== undefined)!
    const { code, stdout } = await nanoweave([
      ...['generate', model, '--prompt', prompt!, '--json', '--precision', 'f32'],
      ...['--temperature', '0', '--tp', '2', '--nano-batches', '2', '--deterministic'],
    ])
    expect(code).toBe(0)
    const result = JSON.parse(stdout) as Record<string, unknown>
    expect(result).toMatchObject({
      tokens: ids,
      text,
      finishReason: 'stop',
      usage: { completionTokens: ids.length },
    })
    expect(Object.keys(result.timings as object)).toContain('ttftMs')
  })

  it('--chat goes through the chat template', async () => {
    const chat = cases.find(
      ({ messages, tools }) =>
        messages?.length === 1 && messages[0]!.role === 'user' && tools === undefined,
    )!
    const { code, stdout } = await nanoweave([
      ...['generate', model, '--chat', chat.messages![0]!.content],
      ...['--json', '--precision', 'f32', '--temperature', '0'],
    ])
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({
      text: chat.text,
      tokens: chat.greedy_ids,
      usage: { promptTokens: chat.prompt_ids.length },
    })
  })

  it('takes token ids, a seed, stop strings and a length', async () => {
    const args = ['generate', model, '--tokens', '1,680,679', '--json', '--max-tokens', '6']
    const sampled = [...args, '--temperature', '1.5', '--seed', '18446744073709551615']
    const [first, second] = [await nanoweave(sampled), await nanoweave(sampled)]
    expect(JSON.parse(first.stdout)).toMatchObject({
      tokens: (JSON.parse(second.stdout) as { tokens: number[] }).tokens,
      finishReason: 'length',
    })
    const stopped = await nanoweave([
      ...['generate', model, '--prompt', 'Once upon a time', '--temperature', '0'],
      ...['--json', '--stop', 'mouse', 'named'],
    ])
    expect(JSON.parse(stopped.stdout)).toMatchObject({ finishReason: 'stop', stopReason: 'mouse' })
  })
})

describe('chat', () => {
  it('answers piped messages, keeps the conversation, and forgets it on /reset', async () => {
    const input = 'My name is Ada.\n/reset\nHello!\n/exit\nnever read\n'
    const { code, stdout } = await nanoweave(['chat', model, '--temperature', '0'], { input })
    expect(code).toBe(0)
    const replies = stdout.trimEnd().split('\n')
    expect(replies).toHaveLength(2)
    const fresh = await nanoweave(['chat', model, '--temperature', '0'], { input: 'Hello!\n' })
    expect(replies[1]).toBe(fresh.stdout.trimEnd())
  })
})

describe('score', () => {
  it('gives null, then log-probabilities, and writes the logits', async () => {
    const file = join(scratch, 'model.safetensors')
    const { code, stdout } = await nanoweave([
      ...['score', model, '--tokens', '1,680,679,266', '--precision', 'f32', '--json'],
      ...['--logits', file],
    ])
    expect(code).toBe(0)
    const { tokens, logprobs } = JSON.parse(stdout) as { tokens: number[]; logprobs: number[] }
    expect(tokens).toEqual([1, 680, 679, 266])
    expect(logprobs[0]).toBeNull()
    const { shape, offset, bytes } = readTensorIndex(scratch).tensors.get('logits')!
    expect(shape).toEqual([4, 2048])
    // The log-probability of token i is row i - 1's log-softmax there.
    const data = await readFile(file)
    const logits = new Float32Array(data.buffer.slice(data.byteOffset + offset).slice(0, bytes))
    for (let i = 1; i < tokens.length; i++) {
      const row = logits.subarray((i - 1) * 2048, i * 2048)
      const most = Math.max(...row)
      const sum = row.reduce((total, value) => total + Math.exp(value - most), 0)
      expect(logprobs[i]).toBeCloseTo(row[tokens[i]!]! - most - Math.log(sum), 4)
    }
  })

  it('prints a line per token', async () => {
    const { code, stdout } = await nanoweave(['score', model, '--tokens', '1,680'])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^1\tnull\n680\t-\d+\.\d+\n$/)
  })

  it('a file that cannot be written: code 1', async () => {
    const file = join(scratch, 'no', 'such', 'folder.safetensors')
    const { code, stderr } = await nanoweave(['score', model, '--tokens', '1,2', '--logits', file])
    expect(code).toBe(1)
    expect(stderr).toContain('ERR_IO')
  })
})

describe('inspect and doctor', () => {
  it('inspect describes a model and its layouts', async () => {
    const { code, stdout } = await nanoweave(['inspect', model, '--json'])
    expect(code).toBe(0)
    const report = JSON.parse(stdout) as { layouts: { weightBytesPerRank: number }[] }
    expect(report).toMatchObject({
      supported: true,
      architecture: 'LlamaForCausalLM',
      layers: 4,
      heads: 8,
      kvHeads: 4,
      chatTemplate: 'yes',
    })
    const weights = report.layouts.map((layout) => layout.weightBytesPerRank)
    expect(weights).toHaveLength(4)
    for (let i = 1; i < weights.length; i++) expect(weights[i]!).toBeLessThan(weights[i - 1]!)
    expect(await nanoweave(['inspect', model])).toMatchObject({ code: 0, stderr: '' })
  })

  it('inspect says why a model is unsupported: code 3', async () => {
    const args = ['inspect', 'test/fixtures/golden/deepseek-v3-mla']
    const json = await nanoweave([...args, '--json'])
    expect(json.code).toBe(3)
    expect(JSON.parse(json.stdout)).toMatchObject({
      supported: false,
      code: 'ERR_UNSUPPORTED_MODEL',
    })
    expect(await nanoweave(args)).toMatchObject({ code: 3, stdout: '' })
  })

  it('doctor finds the addon and the CPU', async () => {
    const { code, stdout } = await nanoweave(['doctor', '--json'])
    expect(code).toBe(0)
    const { healthy, checks } = JSON.parse(stdout) as {
      healthy: boolean
      checks: { name: string; status: string }[]
    }
    expect(healthy).toBe(true)
    const byName = new Map(checks.map((check) => [check.name, check.status]))
    expect(byName.get('native addon')).toBe('ok')
    expect(byName.get('cpu')).toBe('ok')
  })

  it('doctor runs with no addon, says what to do, and fails', async () => {
    const env = { NANOWEAVE_BINARY: join(scratch, 'absent.node') }
    const { code, stdout } = await nanoweave(['doctor', '--json'], { env })
    expect(code).toBe(1)
    const { checks } = JSON.parse(stdout) as { checks: { status: string; todo?: string }[] }
    const failed = checks.filter((check) => check.status === 'failed')
    expect(failed).toHaveLength(1)
    expect(failed[0]!.todo).toContain('NANOWEAVE_BINARY')
  })
})

describe('demo', () => {
  it('streams the story to stdout, the figures to stderr', async () => {
    const { code, stdout, stderr } = await nanoweave(['demo', '--max-tokens', '20'])
    expect(code).toBe(0)
    expect(stdout.startsWith('Once upon a time')).toBe(true)
    expect(stdout.length).toBeGreaterThan(40)
    expect(stderr).toContain('2 nano-batches, 2 ranks')
    for (const figure of ['load', 'first token', 'tokens/s']) expect(stderr).toContain(figure)
  })
})

describe('interruption', () => {
  const endless = ['generate', model, '--prompt', 'Once', '--ignore-eos', '--max-tokens', '1900']

  it('Ctrl-C ends a generation with code 130', async () => {
    let interrupted = false
    const { code, stdout } = await nanoweave(endless, {
      onOutput(child) {
        if (!interrupted) child.kill('SIGINT')
        interrupted = true
      },
    })
    expect(interrupted).toBe(true)
    expect(code).toBe(130)
    expect(stdout.length).toBeLessThan(4000)
  })

  it('Ctrl-C ends a piped conversation with code 130', async () => {
    let interrupted = false
    const { code } = await nanoweave(['chat', model, '--ignore-eos', '--max-tokens', '1900'], {
      input: 'Hello!\nHello again!\n',
      onOutput(child) {
        if (!interrupted) child.kill('SIGINT')
        interrupted = true
      },
    })
    expect(interrupted).toBe(true)
    expect(code).toBe(130)
  })

  it('a reader that goes away ends it quietly', async () => {
    const { code, stderr } = await nanoweave(endless, {
      onOutput: (child) => void child.stdout?.destroy(),
    })
    expect(code).toBe(0)
    expect(stderr).not.toContain('EPIPE')
  })
})

describe('the installed command', () => {
  it('is executable', () => {
    expect(existsSync(main)).toBe(true)
    const version = execFileSync(join(process.cwd(), main), ['--version'], { encoding: 'utf8' })
    expect(version).toMatch(/^\d+\.\d+\.\d+\n$/)
  })
})
