/**
 * EventStream: server-sent events to one client. What the socket has not taken yet is bounded: a
 * writer waits until it drains, and a client that takes nothing for too long is dropped.
 */

import type { ServerResponse } from 'node:http'

export interface EventStreamOptions {
  readonly headers: Readonly<Record<string, string>>
  readonly pingMs: number
  readonly stalledMs: number
}

/** Characters of events in one write, and so about what waits for a slow client. */
const MAX_WRITE = 65_536

export class EventStream {
  readonly #response: ServerResponse
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
    this.#ping = setInterval(() => {
      if (this.#drained === undefined) this.#write(': ping\n\n')
    }, options.pingMs)
    response.once('close', () => clearInterval(this.#ping))
  }

  /** Writes nothing while the client is behind; resolves when there is room, or it is gone. */
  async send(events: readonly object[]): Promise<void> {
    let text = ''
    for (const event of events) {
      text += `data: ${JSON.stringify(event)}\n\n`
      if (text.length < MAX_WRITE) continue
      await this.#drained
      this.#write(text)
      text = ''
    }
    if (text === '') return
    await this.#drained
    this.#write(text)
    await this.#drained
  }

  /** Ends the stream; `data: [DONE]` unless an error was sent. */
  end(mark: '[DONE]' | undefined): void {
    clearInterval(this.#ping)
    if (mark !== undefined) this.#write(`data: ${mark}\n\n`)
    this.#response.end()
  }

  #write(text: string): void {
    const response = this.#response
    if (response.destroyed || response.write(text)) return
    this.#drained ??= new Promise((resolve) => {
      const timer = setTimeout(() => response.destroy(), this.#stalledMs)
      const settle = () => {
        clearTimeout(timer)
        response.off('drain', settle)
        response.off('close', settle)
        this.#drained = undefined
        resolve()
      }
      response.once('drain', settle)
      response.once('close', settle)
    })
  }
}
