/**
 * Runs a workload against a server. Open loop: a request is sent when its time has come, however many
 * are still open, and what was sent late is counted. Closed loop: a fixed number is open at any time.
 */

import { setMaxListeners } from 'node:events'
import { type Agent, Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import { EngineError } from '../../errors.ts'
import type { WorkloadRequest } from '../../workload/index.ts'
import { getJson, type StreamResult, streamCompletion, type Target } from './client.ts'
import {
  fitTokensPerWord,
  PROBE_WORDS,
  type TokensPerWord,
  wordsFor,
  writePrompt,
} from './prompts.ts'

export interface ServeBenchOptions {
  readonly url: string
  readonly model: string | undefined
  readonly apiKey: string | undefined
  readonly endpoint: 'completions' | 'chat'
  /** Ask for outputs of the whole wanted length; an extension that not every server knows. */
  readonly ignoreEos: boolean
  readonly timeoutMs: number
  readonly seed: number
  readonly signal: AbortSignal
}

export interface RequestRecord extends StreamResult {
  /** From the start of the run: when it was to be sent. */
  readonly plannedMs: number
  /** After that: when it was. */
  readonly lateMs: number
}

export interface ServerFacts {
  readonly model: string
  /** Undefined: the server does not say. */
  readonly maxModelLen: number | undefined
  readonly tokensPerWord: TokensPerWord
}

export interface LoadRun {
  readonly records: readonly RequestRecord[]
  readonly wallMs: number
}

interface ModelList {
  readonly data?: readonly { readonly id?: string; readonly max_model_len?: number }[]
}

export class LoadClient {
  readonly #options: ServeBenchOptions
  readonly #target: Target
  readonly #agent: Agent

  constructor(options: ServeBenchOptions) {
    const url = options.url.replace(/\/+$/, '').replace(/\/v1$/, '')
    if (!/^https?:\/\/[^/]/.test(url))
      throw new EngineError('ERR_USAGE', `${options.url} is no http or https address`)
    const create = url.startsWith('https:') ? HttpsAgent : HttpAgent
    this.#agent = new create({ keepAlive: true })
    this.#options = options
    const { apiKey, timeoutMs, signal } = options
    // Every open request listens.
    setMaxListeners(0, signal)
    this.#target = { url, apiKey, timeoutMs, signal, agent: this.#agent }
  }

  /** Model, context length and tokens per word. ERR_IO where the server does not answer. */
  async probe(): Promise<ServerFacts> {
    let list: ModelList
    try {
      list = await getJson<ModelList>(this.#target, '/v1/models')
    } catch (cause) {
      if (cause instanceof EngineError) throw cause
      const reason = (cause as Error).message
      throw new EngineError(
        'ERR_IO',
        `no answer from ${this.#target.url}: ${reason}; is a server running there?`,
        { cause },
      )
    }
    const wanted = this.#options.model
    const found = list.data?.find((each) => wanted === undefined || each.id === wanted)
    const model = wanted ?? found?.id
    if (model === undefined) throw new EngineError('ERR_IO', 'the server lists no model')
    const tokensOf = async (numWords: number): Promise<number> => {
      const { error, promptTokens } = await this.#send(model, numWords, 1, 0)
      // A single token may be empty text.
      if (error === undefined || promptTokens > 0) return promptTokens
      const hint = this.#options.ignoreEos ? '; some refuse ignore_eos (--no-ignore-eos)' : ''
      throw new EngineError('ERR_IO', `the server does not complete: ${error}${hint}`)
    }
    const tokensPerWord = fitTokensPerWord(await tokensOf(PROBE_WORDS), await tokensOf(1))
    return { model, maxModelLen: found?.max_model_len, tokensPerWord }
  }

  /** Sends every request when its time has come. */
  async runOpen(
    facts: ServerFacts,
    requests: readonly WorkloadRequest[],
    onEnd: () => void,
  ): Promise<LoadRun> {
    const startMs = performance.now()
    const running: Promise<RequestRecord>[] = []
    for (const [index, request] of requests.entries()) {
      await this.#sleepUntil(startMs + request.arrivalMs)
      if (this.#options.signal.aborted) break
      const record = this.#run(facts, request, index, startMs, request.arrivalMs)
      running.push(record.finally(onEnd))
    }
    const records = await Promise.all(running)
    this.#throwIfAborted()
    return { records, wallMs: performance.now() - startMs }
  }

  /** Keeps `concurrency` requests open until all are done, or none is begun after `durationMs`. */
  async runClosed(
    facts: ServerFacts,
    requests: readonly WorkloadRequest[],
    concurrency: number,
    durationMs: number,
    onEnd: () => void,
  ): Promise<LoadRun> {
    const startMs = performance.now()
    const records: RequestRecord[] = []
    let next = 0
    const lane = async (): Promise<void> => {
      while (next < requests.length && performance.now() - startMs < durationMs) {
        this.#throwIfAborted()
        const index = next++
        const plannedMs = performance.now() - startMs
        records.push(await this.#run(facts, requests[index], index, startMs, plannedMs))
        onEnd()
      }
    }
    await Promise.all(Array.from({ length: concurrency }, lane))
    this.#throwIfAborted()
    return { records, wallMs: performance.now() - startMs }
  }

  close(): void {
    this.#agent.destroy()
  }

  async #run(
    facts: ServerFacts,
    { promptTokens, outputTokens }: WorkloadRequest,
    index: number,
    startMs: number,
    plannedMs: number,
  ): Promise<RequestRecord> {
    const numWords = wordsFor(promptTokens, facts.tokensPerWord)
    const lateMs = Math.max(0, performance.now() - startMs - plannedMs)
    const result = await this.#send(facts.model, numWords, outputTokens, index + 1)
    return { plannedMs, lateMs, ...result }
  }

  #send(model: string, numWords: number, maxTokens: number, index: number): Promise<StreamResult> {
    const { endpoint, ignoreEos, seed } = this.#options
    const text = writePrompt(numWords, seed * 1_000_003 + index)
    const body = {
      model,
      ...(endpoint === 'chat' ? { messages: [{ role: 'user', content: text }] } : { prompt: text }),
      max_tokens: maxTokens,
      stream: true,
      stream_options: { include_usage: true },
      ...(ignoreEos && { ignore_eos: true }),
    }
    const path = endpoint === 'chat' ? '/v1/chat/completions' : '/v1/completions'
    return streamCompletion(this.#target, path, body)
  }

  async #sleepUntil(timeMs: number): Promise<void> {
    const { signal } = this.#options
    const waitMs = timeMs - performance.now()
    if (waitMs <= 0 || signal.aborted) return
    await new Promise<void>((resolve) => {
      const finish = (): void => {
        clearTimeout(timer)
        signal.removeEventListener('abort', finish)
        resolve()
      }
      const timer = setTimeout(finish, waitMs)
      signal.addEventListener('abort', finish, { once: true })
    })
  }

  #throwIfAborted(): void {
    if (this.#options.signal.aborted)
      throw new EngineError('ERR_ABORTED', 'the run was interrupted', {
        cause: this.#options.signal.reason,
      })
  }
}
