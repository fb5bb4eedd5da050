/**
 * One streamed completion against any server that speaks OpenAI's API, with the time of everything
 * that comes. Node's own HTTP client: fetch would cost more than what it measures.
 */

import {
  type Agent,
  type ClientRequest,
  request as httpRequest,
  type IncomingMessage,
} from 'node:http'
import { request as httpsRequest } from 'node:https'
import { EngineError } from '../../errors.ts'

export interface Target {
  /** Up to and without `/v1`. */
  readonly url: string
  readonly apiKey: string | undefined
  readonly agent: Agent
  /** A request that takes longer counts as failed. */
  readonly timeoutMs: number
  readonly signal: AbortSignal
}

/** Times from the moment the request was sent. */
export interface StreamResult {
  /** Undefined: it ended well. */
  readonly error: string | undefined
  /** To the first event with text. */
  readonly ttftMs: number
  /** Between events with text. */
  readonly gapsMs: readonly number[]
  readonly totalMs: number
  /** As the server counts them; 0 where it does not. */
  readonly promptTokens: number
  readonly outputTokens: number
}

/** What a server may say in one event, or in a body that is no stream. */
const MAX_BUFFERED = 2 ** 20

interface WireEvent {
  readonly choices?: readonly { readonly text?: string; readonly delta?: { content?: string } }[]
  readonly usage?: { readonly prompt_tokens?: number; readonly completion_tokens?: number } | null
  readonly error?: { readonly message?: string; readonly code?: string | null }
}

/** A JSON document, by GET. ERR_IO where there is none. */
export async function getJson<T>(target: Target, path: string): Promise<T> {
  const url = target.url + path
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const request = open(target, path, 'GET', reject)
    request.once('response', resolve)
    request.end()
  })
  const text = await readText(response)
  if (response.statusCode !== 200)
    throw new EngineError('ERR_IO', `${url} answered with ${response.statusCode}`)
  try {
    return JSON.parse(text) as T
  } catch (cause) {
    throw new EngineError('ERR_IO', `${url} did not answer with JSON`, { cause })
  }
}

/** Never rejects: what goes wrong is the result's error. */
export function streamCompletion(
  target: Target,
  path: string,
  body: object,
): Promise<StreamResult> {
  return new Promise((resolve) => {
    const startMs = performance.now()
    const reading = new StreamReading(startMs)
    const finish = (error: string | undefined): void => {
      clearTimeout(timer)
      resolve(reading.result(error, performance.now()))
    }
    const request = open(target, path, 'POST', (error) => finish(error.message))
    const timer = setTimeout(() => request.destroy(new Error('timeout')), target.timeoutMs)
    request.once('response', (response) => {
      if (response.statusCode !== 200) {
        readText(response).then(
          () => finish(`status ${response.statusCode}`),
          () => finish(`status ${response.statusCode}`),
        )
        return
      }
      response.setEncoding('utf8')
      response.on('data', (text: string) => {
        const error = reading.push(text, performance.now())
        if (error === undefined) return
        finish(error)
        request.destroy()
      })
      response.on('error', (error) => finish(error.message))
      response.once('end', () => finish(reading.isDone ? undefined : 'ended without [DONE]'))
    })
    request.end(JSON.stringify(body))
  })
}

function open(
  target: Target,
  path: string,
  method: string,
  onError: (error: Error) => void,
): ClientRequest {
  const { url, apiKey, agent, signal } = target
  const send = url.startsWith('https:') ? httpsRequest : httpRequest
  const request = send(url + path, {
    method,
    agent,
    signal,
    headers: {
      'content-type': 'application/json',
      ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
    },
  })
  request.on('error', onError)
  return request
}

async function readText(response: IncomingMessage): Promise<string> {
  let text = ''
  response.setEncoding('utf8')
  for await (const piece of response) {
    text += piece
    if (text.length > MAX_BUFFERED) throw new EngineError('ERR_IO', 'the answer is too long')
  }
  return text
}

class StreamReading {
  readonly #startMs: number
  readonly #gapsMs: number[] = []
  #buffered = ''
  #firstMs = 0
  #lastMs = 0
  #promptTokens = 0
  #outputTokens = 0
  isDone = false

  constructor(startMs: number) {
    this.#startMs = startMs
  }

  /** What is wrong with the stream, if anything. */
  push(text: string, nowMs: number): string | undefined {
    this.#buffered += text
    for (;;) {
      const end = this.#buffered.indexOf('\n')
      if (end < 0) break
      const line = this.#buffered.slice(0, end).trimEnd()
      this.#buffered = this.#buffered.slice(end + 1)
      if (!line.startsWith('data:')) continue
      const error = this.#onEvent(line.slice('data:'.length).trim(), nowMs)
      if (error !== undefined) return error
    }
    return this.#buffered.length > MAX_BUFFERED ? 'an event is too long' : undefined
  }

  #onEvent(data: string, nowMs: number): string | undefined {
    if (data === '[DONE]') {
      this.isDone = true
      return undefined
    }
    let event: WireEvent
    try {
      event = JSON.parse(data) as WireEvent
    } catch {
      return 'an event is not JSON'
    }
    if (event.error !== undefined) return event.error.code ?? event.error.message ?? 'error event'
    if (event.usage !== undefined && event.usage !== null) {
      this.#promptTokens = event.usage.prompt_tokens ?? 0
      this.#outputTokens = event.usage.completion_tokens ?? 0
    }
    const [choice] = event.choices ?? []
    const content = choice?.text ?? choice?.delta?.content ?? ''
    if (content === '') return undefined
    if (this.#firstMs === 0) this.#firstMs = nowMs
    else this.#gapsMs.push(nowMs - this.#lastMs)
    this.#lastMs = nowMs
    return undefined
  }

  result(error: string | undefined, nowMs: number): StreamResult {
    const isEmpty = this.#firstMs === 0
    return {
      error: error ?? (isEmpty && this.#outputTokens === 0 ? 'no token came' : undefined),
      ttftMs: (isEmpty ? nowMs : this.#firstMs) - this.#startMs,
      gapsMs: this.#gapsMs,
      totalMs: (isEmpty ? nowMs : this.#lastMs) - this.#startMs,
      promptTokens: this.#promptTokens,
      outputTokens: this.#outputTokens,
    }
  }
}
