/**
 * EventStream: server-sent events to one client. All events of a turn of the event loop, and so of a
 * step, are one write. What the socket has not taken yet is bounded: while the client is behind its
 * producer holds back, and a client that takes nothing for too long is dropped.
 */

import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

export interface EventStreamOptions {
  readonly headers: Readonly<Record<string, string>>
  readonly pingMs: number
  readonly stalledMs: number
  readonly batch: WriteBatch
  /** Everything is written and the client is not behind: what was held back may come. */
  readonly onRoom: () => void
}

/** Characters of events in one write, and so about what waits for a slow client. */
const MAX_WRITE = 65_536

/** Streams with something to write; all of them are written at the end of this turn. */
export class WriteBatch {
  #streams: EventStream[] = []

  add(stream: EventStream): void {
    if (this.#streams.push(stream) === 1) process.nextTick(this.#write)
  }

  readonly #write = (): void => {
    const streams = this.#streams
    this.#streams = []
    for (const stream of streams) stream.flush()
  }
}

export class EventStream {
  readonly #response: ServerResponse
  /**
   * Chunks of HTTP are framed here and written as one piece: the response would take three writes for
   * each. Undefined where it has no connection yet (requests in a pipeline) or sends no chunks (HTTP/1.0).
   */
  readonly #socket: Socket | undefined
  readonly #options: EventStreamOptions
  readonly #ping: NodeJS.Timeout
  readonly #unwritten: string[] = []
  #state: 'new' | 'open' | 'ending' | 'ended' = 'new'
  #isListed = false
  #isBehind = false
  #drainWaiters: (() => void)[] = []

  /** Sends the headers at the end of this turn. */
  constructor(response: ServerResponse, options: EventStreamOptions) {
    this.#response = response
    this.#options = options
    response.writeHead(200, {
      ...options.headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      // Proxies that buffer would turn the stream into one piece.
      'x-accel-buffering': 'no',
    })
    this.#socket = response.chunkedEncoding ? (response.socket ?? undefined) : undefined
    this.#ping = setInterval(() => {
      if (!this.#isBehind) this.#queue(': ping\n\n')
    }, options.pingMs)
    response.once('close', () => clearInterval(this.#ping))
    this.#list()
  }

  /** The socket has not taken what was written: give it no more than it must have. */
  get isBehind(): boolean {
    return this.#isBehind
  }

  send(events: readonly string[]): void {
    for (const event of events) this.#queue(`data: ${event}\n\n`)
  }

  /** Resolves when everything is written and `onRoom` has nothing to add, or the client is gone. */
  drained(): Promise<void> {
    return new Promise((resolve) => {
      this.#drainWaiters.push(resolve)
      this.#list()
    })
  }

  /** Ends the stream; `data: [DONE]` unless an error was sent. */
  end(mark: '[DONE]' | undefined): void {
    clearInterval(this.#ping)
    if (mark !== undefined) this.send([mark])
    this.#state = 'ending'
    this.#list()
  }

  /** Writes what there is, as far as the client takes it. The batch calls it. */
  flush(): void {
    this.#isListed = false
    if (this.#isBehind || this.#state === 'ended') return
    // Headers, events and the end leave together.
    const socket = this.#state === 'open' ? undefined : this.#socket
    socket?.cork()
    if (this.#state === 'new') {
      this.#response.flushHeaders()
      this.#state = 'open'
    }
    while (this.#unwritten.length > 0 && !this.#isBehind) this.#write(this.#takeText())
    if (!this.#isBehind) this.#afterWrites()
    socket?.uncork()
  }

  #afterWrites(): void {
    this.#options.onRoom()
    if (this.#unwritten.length > 0) return
    for (const resolve of this.#drainWaiters.splice(0)) resolve()
    if (this.#state !== 'ending') return
    this.#state = 'ended'
    this.#response.end()
  }

  #queue(text: string): void {
    this.#unwritten.push(text)
    this.#list()
  }

  #list(): void {
    if (this.#isListed) return
    this.#isListed = true
    this.#options.batch.add(this)
  }

  #takeText(): string {
    const texts = this.#unwritten
    let text = texts[0]
    let count = 1
    while (count < texts.length && text.length < MAX_WRITE) text += texts[count++]
    texts.splice(0, count)
    return text
  }

  #write(text: string): void {
    if (this.#response.destroyed || this.#writeText(text)) return
    this.#isBehind = true
    const source = this.#socket ?? this.#response
    const timer = setTimeout(() => this.#response.destroy(), this.#options.stalledMs)
    const settle = () => {
      clearTimeout(timer)
      source.off('drain', settle)
      this.#response.off('close', settle)
      this.#isBehind = false
      this.flush()
    }
    source.once('drain', settle)
    this.#response.once('close', settle)
  }

  /** False: the client is behind. */
  #writeText(text: string): boolean {
    if (this.#socket === undefined) return this.#response.write(text)
    return this.#socket.write(`${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`)
  }
}
