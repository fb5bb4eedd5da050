/** The command line as a user runs it: dist/cli/main.js in a child process. */

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { closeSync, existsSync, openSync } from 'node:fs'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
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
/** The model without its text side. */
let wordless: string

beforeAll(async () => {
  execFileSync(process.execPath, ['scripts/prepare.cjs'], { stdio: 'inherit' })
  scratch = await mkdtemp(join(tmpdir(), 'nanoweave-cli-'))
  cases = (
    JSON.parse(await readFile(`${model}/expected.json`, 'utf8')) as { cases: ExpectedCase[] }
  ).cases
  wordless = join(scratch, 'wordless')
  await cp(model, wordless, { recursive: true })
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'])
    await rm(join(wordless, name), { force: true })
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
    [['generate', model, '--prompt', 'a', '--max-tokens', '-1']],
    [['generate', model, '--prompt', 'a', '--kv-cache-bytes', 'much']],
    [['inspect', model, '--precision', 'f64']],
    [['inspect', 'models/tiny-moe', '--ep', '2']],
    [['inspect', 'models/tiny-moe', '--expert-slots', '1']],
    [['inspect', 'models/tiny-moe', '--trace', 'trace.json']],
    [['inspect', 'models/tiny-moe', '--experts', '--trace', 'a.json', '--prompt', 'b']],
    [['inspect', 'models/tiny-moe', '--experts', '--trace', 'a.json', '--save-trace', 'b']],
    [['inspect', 'models/tiny-moe', '--experts', '--ep', '4', '--expert-slots', '255']],
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

  it
    .skipIf(!existsSync('/dev/full'))
    .each([
      [['generate', model, '--prompt', 'a', '--max-tokens', '8']],
      [['generate', model, '--prompt', 'a', '--max-tokens', '8', '--json']],
      [['doctor', '--json']],
      [['--help']],
    ])('%j to a full disk: code 1, one line', (args) => {
    const full = openSync('/dev/full', 'w')
    try {
      const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
        stdio: ['ignore', full, 'pipe'],
        encoding: 'utf8',
      })
      expect(status).toBe(1)
      expect(stderr).toContain('ERR_IO')
      expect(stderr).not.toMatch(/^ +at /m)
    } finally {
      closeSync(full)
    }
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

describe('generate without text', () => {
  it('prints ids where there is no tokenizer', async () => {
    const args = ['generate', wordless, '--tokens', '1,680,679', '--max-tokens', '4']
    const [plain, json] = [await nanoweave(args), await nanoweave([...args, '--json'])]
    const { tokens } = JSON.parse(json.stdout) as { tokens: number[] }
    expect(plain).toMatchObject({ code: 0, stdout: `${tokens.join(',')}\n` })
  })
})

describe('generate --prompt -', () => {
  const args = ['generate', model, '--max-tokens', '6', '--temperature', '0', '--prompt']

  it('reads stdin', async () => {
    const given = await nanoweave([...args, 'Once upon a time'])
    const piped = await nanoweave([...args, '-'], { input: 'Once upon a time\n' })
    expect(piped).toMatchObject({ code: 0, stdout: given.stdout })
  })

  it('refuses more than it can hold: code 2', async () => {
    const input = 'a'.repeat(8 * 1024 * 1024 + 1)
    const { code, stdout, stderr } = await nanoweave([...args, '-'], { input })
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain('ERR_USAGE')
  })
})

describe('chat', () => {
  it.each([
    ['tokenizer', ['tokenizer.json'], 'ERR_TOKENIZER'],
    ['chat template', ['tokenizer_config.json', 'chat_template.jinja'], 'ERR_TEMPLATE'],
  ])('refuses a model without a %s at once: code 1', async (what, names, error) => {
    const folder = join(scratch, `no ${what}`)
    await cp(model, folder, { recursive: true })
    for (const name of names) await rm(join(folder, name), { force: true })
    const { code, stdout, stderr } = await nanoweave(['chat', folder])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain(error)
  })

  it('goes on when the context is full', async () => {
    const input = `${'mouse '.repeat(80)}\nHello!\n`
    const args = ['chat', model, '--temperature', '0', '--max-model-len', '64', '--max-tokens', '8']
    const { code, stdout, stderr } = await nanoweave(args, { input })
    expect(code).toBe(0)
    expect(stderr).toContain('ERR_CONTEXT_LENGTH')
    expect(stderr).toContain('/reset')
    const fresh = await nanoweave(args, { input: 'Hello!\n' })
    expect(fresh.stdout).not.toBe('')
    expect(stdout).toBe(fresh.stdout)
  })

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

  it('inspect tells what ranks hold of the experts', async () => {
    const { code, stdout } = await nanoweave(['inspect', 'models/tiny-moe', '--json'])
    expect(code).toBe(0)
    const { experts } = JSON.parse(stdout)
    expect(experts).toMatchObject({ layers: 3, experts: 8, choices: 2, intermediateSize: 192 })
    expect(
      experts.layouts.map((layout: { expertsPerRank: number }) => layout.expertsPerRank),
    ).toEqual([8, 4, 2, 1])
    // Three layers of eight experts of 3 · 192 · 256 bf16 weights, a quarter of them on each rank.
    const [one, , four] = experts.layouts
    const expertBytes = 3 * 8 * 3 * 192 * 256 * 2
    expect(one.weightBytesPerRank - four.weightBytesPerRank).toBe((expertBytes * 3) / 4)
    const text = await nanoweave(['inspect', 'models/tiny-moe'])
    expect(text.stdout).toContain('8 of width 192, 2 a token, in 3 layers')
  })

  it('inspect --experts runs the model for the loads, and reads them from a trace', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'nanoweave-trace-'))
    try {
      const file = join(folder, 'trace.json')
      const args = ['inspect', 'models/tiny-moe', '--experts', '--ep', '4', '--json']
      const run = await nanoweave([...args, '--save-trace', file])
      expect(run).toMatchObject({ code: 0, stderr: '' })
      const { expertLoads } = JSON.parse(run.stdout)
      expect(expertLoads).toMatchObject({ choices: 2, expertParallel: 4, expertSlots: 1 })
      expect(expertLoads.layers).toHaveLength(3)
      for (const layer of expertLoads.layers) {
        const sum = (values: number[]) => values.reduce((total, value) => total + value)
        expect(sum(layer.experts)).toBe(2 * expertLoads.tokens)
        expect(sum(layer.ranks)).toBe(2 * expertLoads.tokens)
        expect(layer.balancedMaxOverMean).toBeLessThanOrEqual(layer.maxOverMean)
      }
      const again = await nanoweave([...args, '--trace', file])
      expect(JSON.parse(again.stdout).expertLoads).toEqual(expertLoads)
      // One token of more layers and experts than the model has: pairs of experts would be gigabytes.
      const chosen = Buffer.alloc(2 * 1024).toString('base64')
      const hostile = { version: 1, layers: 1024, experts: 1024, choices: 1, chosen }
      const other = join(folder, 'other.json')
      await writeFile(other, JSON.stringify(hostile))
      expect(await nanoweave([...args, '--trace', other])).toMatchObject({ code: 2, stdout: '' })
      const dense = await nanoweave(['inspect', model, '--experts', '--trace', file])
      expect(dense).toMatchObject({ code: 3, stdout: '' })
      const text = await nanoweave(['inspect', 'models/tiny-moe', '--experts', '--trace', file])
      expect(text.stdout).toContain('busiest expert')
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  })

  it('inspect counts the latent vectors of every rank', async () => {
    const folder = 'test/fixtures/golden/deepseek-v3-mla'
    const { code, stdout } = await nanoweave(['inspect', folder, '--json'])
    expect(code).toBe(0)
    const report = JSON.parse(stdout)
    expect(report).toMatchObject({ heads: 8, kvHeads: 1, headDim: 24, latentDim: 24 })
    // Three layers of vectors of 16 + 8 floats; ranks split the heads, and each has all vectors.
    for (const layout of report.layouts) expect(layout.kvBytesPerTokenPerRank).toBe(3 * 24 * 4)
    const text = await nanoweave(['inspect', folder])
    expect(text.stdout).toContain('latent vectors of 24 in the KV cache, on every rank')
  })

  it('inspect says why a model is unsupported: code 3', async () => {
    const folder = join(scratch, 'unsupported')
    await cp('test/fixtures/golden/deepseek-v3-mla', folder, { recursive: true })
    const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
    await writeFile(
      join(folder, 'config.json'),
      JSON.stringify({ ...config, attention_bias: true }),
    )
    const args = ['inspect', folder]
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

describe('demo --json', () => {
  it('is one document', async () => {
    const { code, stdout } = await nanoweave(['demo', '--json', '--max-tokens', '4'])
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({
      prompt: 'Once upon a time',
      finishReason: 'length',
      usage: { completionTokens: 4 },
      info: { tensorParallel: 2 },
    })
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
