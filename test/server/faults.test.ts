/**
 * What goes wrong: clients that leave, stall or flood, an engine that fails, a server that ends. Every
 * case ends with queue and KV blocks as they were, and with the next request answered.
 */

import { connect, type Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import type { EngineOptions } from '../../lib/engine/types.ts'
import { EngineError } from '../../lib/errors.ts'
import { toApiError } from '../../lib/server/api-error.ts'
import type { ServerOptions } from '../../lib/server/types.ts'
import type { FakeOptions } from '../support/fake-binding.ts'
import { eventsOf, expectBaseline, post, type Reply, send, serveFake, until } from './support.ts'

type Fake = Awaited<ReturnType<typeof serveFake>>

const open: Fake[] = []
afterEach(async () => {
  for (const running of open.splice(0)) {
    // A test that failed may have left steps held back; closing waits for them.
    running.runtime.release(1_000_000)
    await running.close()
  }
})

async function start(
  options: ServerOptions = {},
  engine: EngineOptions = {},
  fake: FakeOptions = {},
): Promise<Fake> {
  const running = await serveFake(options, engine, fake)
  open.push(running)
  return running
}

const PROMPT = Array.from({ length: 40 }, (_, at) => 10 + at)
const LONG = { prompt: PROMPT, max_tokens: 1500, ignore_eos: true }

function complete(running: Fake, body: object, headers = {}, signal?: AbortSignal): Promise<Reply> {
  return post(`${running.url}/v1/completions`, body, headers, signal)
}

async function expectHealthy(running: Fake): Promise<void> {
  await expectBaseline(running)
  const { status, json } = await complete(running, { prompt: PROMPT, max_tokens: 3 })
  expect([status, json.usage.completion_tokens]).toEqual([200, 3])
  await expectBaseline(running)
}

const codeOf = ({ status, json }: Reply) => `${status} ${json.error.code}`

/** A request written by hand: what fetch would not send, or not so slowly. */
function sendRaw(running: Fake, text: string): { readonly socket: Socket; received(): string } {
  const { hostname, port } = new URL(running.url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  let received = ''
  socket.on('data', (data: Buffer) => {
    received += data.toString('latin1')
  })
  socket.write(text)
  return { socket, received: () => received }
}

function rawPost(path: string, body: string, headers = ''): string {
  return `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${headers}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
}

describe('clients', () => {
  it.each([true, false])('that leave while the prompt is computed (stream: %s)', async (stream) => {
    const running = await start({}, {}, { manual: true })
    const { socket } = sendRaw(
      running,
      rawPost('/v1/completions', JSON.stringify({ ...LONG, stream })),
    )
    await until(() => running.engine.stats().stepsInFlight > 0)
    socket.destroy()
    await until(() => running.engine.stats().finished.abort === 1)
    running.runtime.release(1_000_000)
    await expectHealthy(running)
  })

  it('that leave while tokens stream, within a step', async () => {
    const running = await start({}, {}, { latencyMs: 2 })
    const left = new AbortController()
    const stays = complete(running, {
      ...LONG,
      max_tokens: 300,
      stream: true,
      stream_options: { include_usage: true },
    })
    const leaves = fetch(`${running.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...LONG, n: 3, stream: true }),
      signal: left.signal,
    }).then(async (response) => {
      await response.body!.getReader().read()
      left.abort()
    })
    await leaves
    await until(() => running.engine.stats().finished.abort === 3)
    const events = eventsOf((await stays).text)
    expect(events.pop()).toBe('[DONE]')
    expect(JSON.parse(events.pop()!).usage.completion_tokens).toBe(300)
    await expectHealthy(running)
  })

  it('that read nothing are dropped, and what waits for them is bounded', async () => {
    const running = await start({ limits: { stalledMs: 300 } }, {}, {})
    const body = JSON.stringify({ ...LONG, n: 16, logprobs: 20, stream: true })
    const { socket } = sendRaw(running, rawPost('/v1/completions', body))
    socket.pause()
    await until(() => running.engine.stats().running > 0)
    const others = await complete(running, { ...LONG, max_tokens: 50 })
    expect(others.json.usage.completion_tokens).toBe(50)
    // The server lets go of the connection, not only of the requests.
    await until(() => running.engine.stats().running === 0)
    await running.server.drain()
    expect(socket.bytesRead).toBeLessThan(8e6)
    socket.destroy()
    await expectBaseline(running)
  })

  it('that do not take a whole response are dropped', async () => {
    const running = await start({ limits: { stalledMs: 300 } })
    const body = JSON.stringify({ ...LONG, max_tokens: 500, n: 16, logprobs: 20 })
    const { socket } = sendRaw(running, rawPost('/v1/completions', body))
    socket.pause()
    await until(() => running.engine.stats().finished.length === 16)
    await running.server.drain()
    expect(running.engine.stats().finished.abort).toBe(0)
    socket.destroy()
    await expectBaseline(running)
  })

  it('that ask for more than the queue holds: 429 with Retry-After', async () => {
    const running = await start({}, { maxNumSeqs: 1, maxWaiting: 2 }, { latencyMs: 1 })
    const all = await Promise.all(
      Array.from({ length: 12 }, (_, at) =>
        complete(running, { ...LONG, max_tokens: 40, stream: at % 2 === 0 }),
      ),
    )
    const refused = all.filter(({ status }) => status === 429)
    expect(refused.length).toBeGreaterThan(0)
    for (const reply of refused) {
      expect(codeOf(reply)).toBe('429 overloaded')
      expect(reply.headers.get('retry-after')).toBe('1')
    }
    expect(all.filter(({ status }) => status === 200).length).toBe(12 - refused.length)
    await expectHealthy(running)
  })

  it('that ask for more than the KV cache holds: what to do, in their words', () => {
    const what = '9 tokens need 3 KV blocks and there are 2; lower maxTokens or raise kvCacheBytes'
    const { status, body } = toApiError(new EngineError('ERR_KV_EXHAUSTED', what))
    expect([status, body.error.code]).toEqual([400, 'context_length_exceeded'])
    expect(body.error.message).toContain('lower max_tokens or raise --kv-cache-bytes of the server')
  })

  it('that get a message with a word of JavaScript in it: as it is', () => {
    const what = 'toString, hasOwnProperty and maxTokens'
    const { body } = toApiError(new EngineError('ERR_USAGE', what))
    expect(body.error.message).toBe('toString, hasOwnProperty and max_tokens')
  })

  it('that are too many, or hold too much: 429 before the body is read', async () => {
    const limits = { requests: 2, totalBodyBytes: 1000 }
    const running = await start({ limits }, {}, { latencyMs: 1 })
    const busy = [complete(running, LONG), complete(running, LONG)]
    await until(() => running.engine.stats().running === 2)
    expect(codeOf(await complete(running, { prompt: PROMPT }))).toBe('429 overloaded')
    expect((await send(`${running.url}/health`)).status).toBe(200)
    await Promise.all(busy)
    const large = { prompt: PROMPT, user: 'x'.repeat(2000) }
    expect(codeOf(await complete(running, large))).toBe('429 overloaded')
    await expectHealthy(running)
  })

  it('without a key, or a wrong one: 401, and nothing of the body is read', async () => {
    const running = await start({ apiKeys: ['one', 'two'] })
    const authorization = (key: string) => ({ authorization: key })
    for (const key of ['', 'Bearer', 'Bearer three', 'Basic one', 'Bearer one two'])
      expect(codeOf(await complete(running, LONG, authorization(key)))).toBe('401 invalid_api_key')
    for (const path of ['/tokenize', '/detokenize', '/v1/embeddings'])
      expect(codeOf(await post(running.url + path, {}))).toBe('401 invalid_api_key')
    expect((await send(`${running.url}/v1/models`)).status).toBe(401)
    expect((await send(`${running.url}/metrics`)).status).toBe(200)
    const { socket, received } = sendRaw(
      running,
      rawPost('/v1/completions', '').replace('length: 0', 'length: 8000000'),
    )
    await until(() => received().includes('invalid_api_key'))
    expect(received()).toMatch(/connection: close/i)
    socket.destroy()
    const reply = await complete(running, { prompt: PROMPT }, authorization('Bearer two'))
    expect(reply.status).toBe(200)
    await running.close()
    const guarded = await start({ apiKeys: ['one'], guardAll: true })
    expect(codeOf(await send(`${guarded.url}/health`))).toBe('401 invalid_api_key')
    expect(
      (await send(`${guarded.url}/health`, { headers: authorization('Bearer one') })).status,
    ).toBe(200)
  })

  it('that do not speak HTTP, or say too much of it', async () => {
    const running = await start()
    const raw = sendRaw(running, 'hello\r\n\r\n')
    await until(() => raw.received().includes('invalid_http'))
    const headers = `x-large: ${'x'.repeat(17_000)}\r\n`
    const large = sendRaw(running, rawPost('/v1/completions', '{}', headers))
    await until(() => large.received().includes('headers_too_large'))
    await expectHealthy(running)
  })

  it('that send a body too slowly are dropped', async () => {
    const running = await start({ limits: { receiveMs: 300 } })
    const slow = rawPost('/v1/completions', '{').replace('length: 1', 'length: 900')
    const { socket } = sendRaw(running, slow)
    await new Promise((resolve) => socket.once('close', resolve))
    await running.server.drain()
  }, 60_000)
})

describe('time', () => {
  it('past a deadline: an error, and not to be tried again', async () => {
    const running = await start({}, {}, { latencyMs: 5 })
    const whole = await complete(running, { ...LONG, deadline_ms: 60 })
    expect(codeOf(whole)).toBe('503 deadline_exceeded')
    expect(whole.headers.get('x-should-retry')).toBe('false')
    const { status, text } = await complete(running, { ...LONG, deadline_ms: 60, stream: true })
    const last = JSON.parse(eventsOf(text).at(-1)!)
    expect([status, last.error.code]).toEqual([200, 'deadline_exceeded'])
    await expectHealthy(running)
  })

  it('without a token: headers at once, and a ping', async () => {
    const running = await start({ limits: { pingMs: 20 } }, {}, { manual: true })
    const body = JSON.stringify({ ...LONG, stream: true })
    const { socket, received } = sendRaw(running, rawPost('/v1/completions', body))
    await until(() => received().split(': ping\n\n').length > 3)
    expect(received()).toMatch(/^HTTP\/1.1 200/)
    socket.destroy()
    running.runtime.release(1_000_000)
    await expectHealthy(running)
  })

  it('with a step overdue: not ready, until it ends', async () => {
    const running = await start({ limits: { stepOverdueMs: 100 } }, {}, { manual: true })
    const ready = async () => (await send(`${running.url}/ready`)).json
    expect(await ready()).toEqual({ status: 'ready' })
    const reply = complete(running, { prompt: PROMPT, max_tokens: 2 })
    await until(() => running.engine.stats().stepsInFlight > 0)
    // Progress is sampled: the step counts as overdue 100 ms after it was first seen.
    await expect
      .poll(ready, { timeout: 10_000 })
      .toEqual({ status: 'not_ready', reason: 'step_overdue' })
    expect((await send(`${running.url}/health`)).status).toBe(200)
    running.runtime.release(1_000_000)
    expect((await reply).status).toBe(200)
    expect(await ready()).toEqual({ status: 'ready' })
  })
})

describe('engine', () => {
  it('that fails: 503 to all, health and readiness fall', async () => {
    const running = await start({}, {}, { latencyMs: 1 })
    running.runtime.failAt = 20
    const streamed = complete(running, { ...LONG, stream: true })
    const whole = complete(running, LONG)
    expect(codeOf(await whole)).toBe('503 engine_failed')
    const { status, text } = await streamed
    const events = eventsOf(text)
    expect(status).toBe(200)
    expect(JSON.parse(events.at(-1)!).error.code).toBe('engine_failed')
    expect(codeOf(await complete(running, LONG))).toBe('503 engine_failed')
    const chat = await post(`${running.url}/v1/chat/completions`, {
      messages: [{ role: 'user', content: 'x' }],
      stream: true,
    })
    expect(codeOf(chat)).toBe('503 engine_failed')
    for (const path of ['/ready', '/health'])
      expect((await send(running.url + path)).status).toBe(503)
    expect((await send(`${running.url}/metrics`)).status).toBe(200)
    expect(running.engine.stats().kvBlocks.used).toBe(0)
  })
})

describe('drain', () => {
  it('refuses new requests, ends old ones, answers probes', async () => {
    const running = await start({}, {}, { latencyMs: 1 })
    const old = complete(running, { ...LONG, max_tokens: 200, stream: true })
    await until(() => running.engine.stats().running === 1)
    let isDrained = false
    const drained = running.server.drain().then(() => {
      isDrained = true
    })
    expect((await send(`${running.url}/ready`)).json).toEqual({
      status: 'not_ready',
      reason: 'draining',
    })
    expect((await send(`${running.url}/health`)).status).toBe(200)
    const refused = await complete(running, LONG)
    expect(codeOf(refused)).toBe('503 shutting_down')
    expect(refused.headers.get('retry-after')).toBe('1')
    expect(isDrained).toBe(false)
    expect(eventsOf((await old).text).at(-1)).toBe('[DONE]')
    await drained
    await expectBaseline(running)
  })

  it('of a closed engine ends streams with an error', async () => {
    const running = await start({}, {}, { latencyMs: 2 })
    const old = complete(running, { ...LONG, stream: true })
    await until(() => running.engine.stats().running === 1)
    const drained = running.server.drain()
    await running.engine.close()
    expect(JSON.parse(eventsOf((await old).text).at(-1)!).error.code).toBe('shutting_down')
    await drained
  })

  it('needs a free port: ERR_IO', async () => {
    const running = await start()
    const port = Number(new URL(running.url).port)
    const second = await start()
    await expect(second.server.listen(port)).rejects.toMatchObject({ code: 'ERR_IO' })
    await expectHealthy(running)
  })
})
