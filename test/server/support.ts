/** A server on a free port over an engine: the demo model, or a fake runtime that can be made to fail. */

import { fileURLToPath } from 'node:url'
import { expect } from 'vitest'
import { assembleEngine } from '../../lib/engine/assemble.ts'
import { Engine } from '../../lib/engine/engine.ts'
import type { EngineOptions } from '../../lib/engine/types.ts'
import { createServer, type Server } from '../../lib/server/server.ts'
import type { ServerOptions } from '../../lib/server/types.ts'
import { createFakeBinding, type FakeOptions, type FakeRuntime } from '../support/fake-binding.ts'

export const FOLDER = fileURLToPath(new URL('../../models/tiny-dense', import.meta.url))

export interface Running {
  readonly engine: Engine
  readonly server: Server
  /** `http://127.0.0.1:PORT` */
  readonly url: string
  close(): Promise<void>
}

async function serve(engine: Engine, options: ServerOptions): Promise<Running> {
  const server = createServer(engine, { logLevel: 'silent', ...options })
  const url = await server.listen(0)
  return {
    engine,
    server,
    url,
    async close() {
      await server.close()
      await engine.close()
    },
  }
}

export async function serveDemo(
  options: ServerOptions = {},
  engineOptions: EngineOptions = {},
): Promise<Running> {
  const engine = await Engine.load(FOLDER, { precision: 'f32', threads: 2, ...engineOptions })
  return serve(engine, options)
}

export async function serveFake(
  options: ServerOptions = {},
  engineOptions: EngineOptions = {},
  fake: FakeOptions = {},
  folder = FOLDER,
): Promise<Running & { readonly runtime: FakeRuntime }> {
  const binding = createFakeBinding(fake)
  const engine = new Engine(await assembleEngine(folder, engineOptions, binding))
  return { ...(await serve(engine, options)), runtime: binding.runtimes[0] }
}

/** Waits until `isTrue`; fails after thirty seconds. */
export async function until(isTrue: () => boolean): Promise<void> {
  const endMs = performance.now() + 30_000
  while (!isTrue()) {
    if (performance.now() > endMs) throw new Error(`never became true: ${isTrue}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** Nothing runs, nothing waits, no block is in use. */
export async function expectBaseline({ engine }: Running): Promise<void> {
  await until(() => {
    const { running, waiting, kvBlocks, stepsInFlight } = engine.stats()
    return running + waiting + kvBlocks.used + stepsInFlight === 0
  })
  const { kvBlocks } = engine.stats()
  expect(kvBlocks.free + kvBlocks.cached).toBe(kvBlocks.total)
}

export interface Reply {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** Undefined unless the body is JSON. */
  readonly json: Wire
}

interface WireLogprob {
  readonly token: string
  readonly logprob: number
  readonly bytes: readonly number[]
  readonly top_logprobs: readonly WireLogprob[]
}

interface WireCall {
  readonly id: string
  readonly function: { readonly name: string; readonly arguments: string }
}

interface WireMessage {
  readonly role: string
  readonly content: string
  readonly tool_calls: readonly WireCall[]
}

/** The fields of all bodies; a body has those of its schema, which is checked apart. */
export interface Wire {
  readonly id: string
  readonly created: number
  readonly model: string
  readonly choices: readonly {
    readonly index: number
    readonly text: string
    readonly message: WireMessage
    readonly delta: Partial<WireMessage>
    readonly logprobs: {
      readonly content: readonly WireLogprob[]
      readonly tokens: readonly string[]
      readonly token_logprobs: readonly number[]
      readonly top_logprobs: readonly Readonly<Record<string, number>>[]
      readonly text_offset: readonly number[]
    } | null
    readonly finish_reason: string | null
  }[]
  readonly usage: {
    readonly prompt_tokens: number
    readonly completion_tokens: number
    readonly total_tokens: number
  }
  readonly error: { readonly code: string; readonly param: string | null }
  readonly tokens: readonly number[]
  readonly count: number
  readonly prompt: string
  readonly status: string
  readonly reason: string
  readonly openapi: string
  readonly steps: readonly object[]
  readonly components: { readonly schemas: Readonly<Record<string, object>> }
}

export async function send(url: string, init: RequestInit = {}): Promise<Reply> {
  const response = await fetch(url, init)
  const text = await response.text()
  const isJson = response.headers.get('content-type')?.startsWith('application/json') === true
  return {
    status: response.status,
    headers: response.headers,
    text,
    json: isJson ? JSON.parse(text) : undefined,
  }
}

export function post(
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
  signal?: AbortSignal,
): Promise<Reply> {
  return send(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...(signal !== undefined && { signal }),
  })
}

/** The data of every event. */
export function eventsOf(text: string): string[] {
  return text
    .split('\n\n')
    .filter((event) => event.startsWith('data: '))
    .map((event) => event.slice('data: '.length))
}
