/** EventStream on real sockets: how many writes there are, and what waits for a client that is behind. */

import { once } from 'node:events'
import { createServer, request, type Server, type ServerResponse } from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { EventStream, WriteBatch } from '../../lib/server/event-stream.ts'
import { until } from './support.ts'

const servers: Server[] = []
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
})

interface Opened {
  readonly stream: EventStream
  readonly response: ServerResponse
  readonly port: number
  /** Of the socket, from the headers on. */
  readonly writes: () => number
}

/** A server whose one request is answered by a stream. */
async function serveStream(stalledMs: number, onRoom: () => void = () => {}) {
  let opened: Opened | undefined
  const server = createServer((_, response) => {
    const socket = response.socket!
    let numWrites = 0
    for (const name of ['_write', '_writev'] as const) {
      const original = socket[name] as (...args: unknown[]) => void
      Object.assign(socket, {
        [name](this: Socket, ...args: unknown[]) {
          numWrites++
          original.apply(this, args)
        },
      })
    }
    const { port } = server.address() as AddressInfo
    const options = { headers: {}, pingMs: 60_000, stalledMs, batch: new WriteBatch(), onRoom }
    const stream = new EventStream(response, options)
    opened = { stream, response, port, writes: () => numWrites }
  })
  servers.push(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    async opened(): Promise<Opened> {
      await until(() => opened !== undefined)
      return opened!
    },
  }
}

const turn = () => new Promise((resolve) => setImmediate(resolve))

/** Everything that one GET receives. */
function receive(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const get = request({ port, host: '127.0.0.1' }, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (piece: string) => {
        text += piece
      })
      response.on('end', () => resolve(text))
    })
    get.on('error', reject)
    get.end()
  })
}

describe('EventStream', () => {
  it('writes once for all events of a turn, with the headers before and the end after them', async () => {
    const server = await serveStream(60_000)
    const received = receive(server.port)
    const { stream, writes } = await server.opened()
    await turn()
    // The headers: this turn is over.
    const opened = writes()
    expect(opened).toBe(1)
    stream.send(['{"a":1}', '{"a":"é"}'])
    stream.send(['{"a":3}'])
    await turn()
    expect(writes()).toBe(opened + 1)
    stream.send(['{"usage":4}'])
    stream.end('[DONE]')
    expect(await received).toBe(
      'data: {"a":1}\n\ndata: {"a":"é"}\n\ndata: {"a":3}\n\ndata: {"usage":4}\n\ndata: [DONE]\n\n',
    )
    expect(writes()).toBe(opened + 2)
  })

  it('is behind while the client takes nothing; goes on in bounded pieces, and tells of room', async () => {
    let numRooms = 0
    const server = await serveStream(60_000, () => {
      numRooms++
    })
    const socket = connect(server.port, '127.0.0.1')
    socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n')
    socket.pause()
    const { stream, response } = await server.opened()
    await turn()
    const event = 'x'.repeat(50_000)
    let numSent = 0
    while (!stream.isBehind || numSent < 40) {
      stream.send([event])
      numSent++
      await turn()
    }
    // The kernel's buffers hold some; what waits here is one piece, the rest are the events themselves.
    expect(response.socket!.writableLength).toBeLessThan(400_000)
    const before = numRooms
    let received = 0
    socket.on('data', (data) => {
      received += data.length
    })
    socket.resume()
    await stream.drained()
    expect(numRooms).toBeGreaterThan(before)
    stream.end('[DONE]')
    await until(() => received > numSent * 50_000)
    socket.destroy()
  })

  it('lets go of a client that takes nothing for too long, and of one that has left', async () => {
    const server = await serveStream(100)
    const socket = connect(server.port, '127.0.0.1')
    socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n')
    socket.pause()
    const { stream, response } = await server.opened()
    while (!stream.isBehind) {
      stream.send(['x'.repeat(60_000)])
      await turn()
    }
    const drained = stream.drained()
    await until(() => response.destroyed)
    await drained
    expect(stream.isBehind).toBe(false)
    stream.send(['more'])
    stream.end('[DONE]')
    await turn()
    socket.destroy()
  })
})
