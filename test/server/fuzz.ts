/**
 * Random requests against a server: valid bodies with fields changed, dropped and nested, bytes
 * flipped, clients that leave. `NANOWEAVE_FUZZ_REQUESTS=100000 npx vitest run test/server/fuzz.test.ts`
 * runs more of them.
 */

import { createRandom, type Random } from '../support/random.ts'

export interface FuzzResult {
  /** Status → how often; `left`: the client went away. */
  readonly statuses: Readonly<Record<string, number>>
  /** Answers that are neither the API's JSON nor its events. */
  readonly malformed: readonly string[]
  /** From sending the slowest of the requests that were refused to the end of its answer. */
  readonly slowestMs: number
}

const PATHS = [
  '/v1/chat/completions',
  '/v1/completions',
  '/tokenize',
  '/detokenize',
  '/v1/embeddings',
  '/v1/models/x',
]

const VALUES: readonly unknown[] = [
  null,
  true,
  0,
  -1,
  1,
  1.5,
  1e308,
  2 ** 53,
  '',
  'x',
  '\u0000\ud800',
  '🦊'.repeat(300),
  '<tool_call>{"name": "add"',
  '<|end|>',
  [],
  [[]],
  {},
  [null, 1, 'x', {}],
  { type: 'text' },
  { type: 'function', function: { name: 'add' } },
  [{ type: 'function', function: { name: 'add', parameters: {} } }],
  { __proto__: { n: 99 }, constructor: 1 },
  [1, 680, 679],
  [99_999_999],
]

const FIELDS = [
  'messages',
  'prompt',
  'tokens',
  'model',
  'n',
  'stop',
  'seed',
  'stream',
  'stream_options',
  'temperature',
  'top_p',
  'top_k',
  'min_p',
  'logprobs',
  'top_logprobs',
  'logit_bias',
  'tools',
  'tool_choice',
  'response_format',
  'max_tokens',
  'min_tokens',
  'stop_token_ids',
  'chat_template_kwargs',
  'repetition_penalty',
  'presence_penalty',
  'priority',
  'deadline_ms',
  'cache_salt',
  'ignore_eos',
]

function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.int(0, list.length - 1)]
}

function createBody(random: Random): Record<string, unknown> {
  const body: Record<string, unknown> = {
    messages: [{ role: 'user', content: 'What is 3 + 4?' }],
    prompt: 'Once upon a time',
    tokens: [1, 680, 679],
    max_tokens: random.int(1, 6),
  }
  for (let count = random.int(0, 4); count > 0; count--)
    body[pick(random, FIELDS)] = pick(random, VALUES)
  if (random.next() < 0.2) delete body[pick(random, Object.keys(body))]
  if (random.next() < 0.3) body.stream = true
  // /tokenize takes one of them.
  if (random.next() < 0.5) delete body[pick(random, ['messages', 'prompt'])]
  return body
}

function mutate(random: Random, text: string): Buffer {
  const bytes = Buffer.from(text)
  if (random.next() < 0.75) return bytes
  for (let count = random.int(1, 4); count > 0; count--)
    bytes[random.int(0, bytes.length - 1)] = random.int(0, 255)
  return random.next() < 0.3 ? bytes.subarray(0, random.int(0, bytes.length)) : bytes
}

function isWellFormed(type: string, text: string): boolean {
  if (type.startsWith('text/event-stream')) {
    const events = text.split('\n\n').filter((event) => event !== '' && event !== ': ping')
    const last = events.at(-1) ?? ''
    return events.every((event) => event.startsWith('data: ')) && /\[DONE\]|"error"/.test(last)
  }
  return typeof JSON.parse(text) === 'object'
}

export async function fuzzServer(
  url: string,
  numRequests: number,
  seed: number,
): Promise<FuzzResult> {
  const random = createRandom(seed)
  const statuses: Record<string, number> = {}
  const malformed: string[] = []
  let numSent = 0
  let slowestMs = 0
  const sendOne = async (): Promise<void> => {
    const path = pick(random, PATHS)
    const body = mutate(random, JSON.stringify(createBody(random)))
    const leaves = random.next() < 0.1
    const controller = new AbortController()
    if (leaves) setTimeout(() => controller.abort(), random.int(0, 15))
    let status = 'left'
    const startMs = performance.now()
    try {
      const response = await fetch(url + path, {
        method: 'POST',
        headers: {
          'content-type': random.next() < 0.97 ? 'application/json' : 'text/plain',
        },
        body,
        signal: controller.signal,
      })
      const text = await response.text()
      status = String(response.status)
      if (!isWellFormed(response.headers.get('content-type') ?? '', text))
        malformed.push(`${path} ${body.toString('latin1')} → ${text.slice(0, 200)}`)
    } catch (error) {
      if (!leaves) throw error
    }
    // Without max_tokens an answer goes on to the end of the context, and may take its time.
    if (status !== '200') slowestMs = Math.max(slowestMs, performance.now() - startMs)
    statuses[status] = (statuses[status] ?? 0) + 1
  }
  const lane = async (): Promise<void> => {
    while (numSent < numRequests) {
      numSent++
      await sendOne()
    }
  }
  await Promise.all(Array.from({ length: 8 }, lane))
  return { statuses, malformed, slowestMs }
}
