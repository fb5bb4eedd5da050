/**
 * EventStream: server-sent events to one client. What the socket has not taken yet is bounded: a
 * writer waits until it drains, and a client that takes nothing for too long is dropped.
 */

import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

export interface EventStreamOptions {
  readonly headers: Readonly<Record<string, string>>
  readonly pingMs: number
  readonly stalledMs: number
}

/** Characters of events in one write, and so about what waits for a slow client. */
const MAX_WRITE = 65_536

export class EventStream {
  readonly #response: ServerResponse
  /**
   * Chunks of HTTP are framed here and written as one piece: the response would take three writes for
   * each. Undefined where it has no connection yet (requests in a pipeline) or sends no chunks (HTTP/1.0).
   */
  readonly #socket: Socket | undefined
  readonly #stalledMs: number
  readonly #ping: NodeJS.Timeout
  #drained: Promise<void> | undefined

  /** Sends the headers at once. */
  constructor(response: ServerResponse, options: EventStreamOptions) {
    this.#response = response
    this.#stalledMs = options.stalledMs
    response.writeHead(200, {
      ...options.headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      // Proxies that buffer would turn the stream into one piece.
      'x-accel-buffering': 'no',
    })
    response.flushHeaders()
    this.#socket = response.chunkedEncoding ? (response.socket ?? undefined) : undefined
    this.#ping = setInterval(() => {
      if (this.#drained === undefined) this.#write(': ping\n\n')
    }, options.pingMs)
    response.once('close', () => clearInterval(this.#ping))
  }

  /**
   * Writes nothing while the client is behind. A promise, where the caller should wait: it resolves
   * when there is room, or the client is gone.
   */
  send(events: readonly string[]): Promise<void> | undefined {
    if (events.length === 0) return undefined
    const isShort = events.length === 1 && events[0].length < MAX_WRITE
    if (!isShort || this.#drained !== undefined) return this.#sendInPieces(events)
    this.#write(`data: ${events[0]}\n\n`)
    return this.#drained
  }

  async #sendInPieces(events: readonly string[]): Promise<void> {
    let text = ''
    for (const event of events) {
      text += `data: ${event}\n\n`
      if (text.length < MAX_WRITE) continue
      await this.#drained
      this.#write(text)
      text = ''
    }
    await this.#drained
    if (text !== '') this.#write(text)
    await this.#drained
  }

  /** Ends the stream; `data: [DONE]` unless an error was sent. */
  end(mark: '[DONE]' | undefined): void {
    clearInterval(this.#ping)
    if (mark !== undefined) this.#write(`data: ${mark}\n\n`)
    this.#response.end()
  }

  #write(text: string): void {
    if (this.#response.destroyed || this.#writeText(text)) return
    const source = this.#socket ?? this.#response
    this.#drained ??= new Promise((resolve) => {
      const timer = setTimeout(() => this.#response.destroy(), this.#stalledMs)
      const settle = () => {
        clearTimeout(timer)
        source.off('drain', settle)
        this.#response.off('close', settle)
        this.#drained = undefined
        resolve()
      }
      source.once('drain', settle)
      this.#response.once('close', settle)
    })
  }

  /** False: the client is behind. */
  #writeText(text: string): boolean {
    if (this.#socket === undefined) return this.#response.write(text)
    return this.#socket.write(`${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`)
  }
}
