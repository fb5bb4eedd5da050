/**
 * What the HTTP server costs: the same chat requests, all at once, once straight into the engine and
 * once over HTTP, in turn, medians of many rounds:
 *
 *   npx tsx bench/serve-overhead.ts [--streams 200] [--tokens 128] [--rounds 9] [--threads 1] [--json FILE]
 *     [--profile FOLDER]
 *
 * Engine and server share a process, as in `nanoweave serve`; the client is this process, over plain
 * sockets, so that its work is not the server's. On two cores all of them still share the machine:
 * the processor time of the event loop's thread, of the whole process and of the client is reported
 * beside the wall time. Where others use the machine, believe only those.
 */

import { fork } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { describeMachine } from '../lib/bench/machine.ts'
import { quantile } from '../lib/bench/stats.ts'
import { chatBodies, type Measured, type ServerCommand } from './serve-overhead-load.ts'

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'models/tiny-dense' },
    streams: { type: 'string', default: '200' },
    tokens: { type: 'string', default: '128' },
    rounds: { type: 'string', default: '9' },
    threads: { type: 'string', default: '1' },
    json: { type: 'string' },
    profile: { type: 'string' },
  },
})
const numStreams = Number(values.streams)
const numTokens = Number(values.tokens)
const numRounds = Number(values.rounds)

const profiling =
  values.profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${values.profile}`]
const server = fork(
  fileURLToPath(new URL('./serve-overhead-server.ts', import.meta.url)),
  [values.model, values.threads, String(numStreams)],
  { execArgv: [...process.execArgv, ...profiling] },
)

const loaded = new Promise((resolve) => server.once('message', resolve))

function ask<Reply>(command: ServerCommand): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const onExit = () => reject(new Error('the server ended'))
    server.once('exit', onExit)
    server.once('message', (reply) => {
      server.off('exit', onExit)
      resolve(reply as Reply)
    })
    server.send(command)
  })
}

/** Of a stream's end, bytes: its usage and `[DONE]` are in them. */
const TAIL_BYTES = 1024

/** Sends one request over a connection of its own; resolves when its stream has ended well. */
function streamOnce(host: string, port: number, body: string): Promise<void> {
  return new Promise((resolve, reject) => {
    // As little work as a client can do: bytes are read and forgotten.
    const received = Buffer.allocUnsafe(16_384)
    let tail = ''
    const onread = {
      buffer: received,
      callback(numBytes: number): boolean {
        const begin = Math.max(0, numBytes - TAIL_BYTES)
        tail = (tail + received.toString('latin1', begin, numBytes)).slice(-TAIL_BYTES)
        return true
      },
    }
    const socket = connect({ port, host, onread })
    socket.on('error', reject)
    socket.on('close', () => {
      const isWhole = tail.includes('data: [DONE]') && tail.includes(`_tokens":${numTokens},`)
      if (isWhole) resolve()
      else reject(new Error(`a stream did not end well: ${tail.slice(-200)}`))
    })
    // Not ended: a half-closed connection counts as a client that has left.
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
    )
  })
}

/** Milliseconds between two looks of the client at its sockets. */
const DOZE_MS = 2
const dozing = new Int32Array(new SharedArrayBuffer(4))

/**
 * Until `work` ends this process sleeps between looks at its sockets. Awake for every event it would take
 * the server's core away 200 times a step, which no client on another machine does.
 */
async function whileDozing<T>(work: Promise<T>): Promise<T> {
  let isDone = false
  const doze = (): void => {
    if (isDone) return
    Atomics.wait(dozing, 0, 0, DOZE_MS)
    setImmediate(doze)
  }
  doze()
  return work.finally(() => {
    isDone = true
  })
}

/** Processor time of this process in each round with all streams. */
const clientMs: number[] = []

async function runServed(port: number, streams: number, round: number): Promise<Measured> {
  await ask({ kind: 'begin' })
  const before = process.cpuUsage()
  const bodies = chatBodies(streams, numTokens, round)
  const all = Promise.all(bodies.map((body) => streamOnce('127.0.0.1', port, JSON.stringify(body))))
  await (streams === 1 ? all : whileDozing(all))
  const used = process.cpuUsage(before)
  if (streams === numStreams) clientMs.push((used.user + used.system) / 1000)
  return ask<Measured>({ kind: 'end' })
}

const runDirect = (streams: number, round: number): Promise<Measured> =>
  ask<Measured>({ kind: 'direct', streams, tokens: numTokens, round })

const rate = ({ wallMs }: Measured, streams: number): number =>
  (1000 * streams * numTokens) / wallMs

await loaded
const { port } = await ask<{ readonly port: number }>({ kind: 'listen' })
await runDirect(numStreams, 0)
await runServed(port, numStreams, 1)
const direct: Measured[] = []
const served: Measured[] = []
const single: Measured[] = []
for (let round = 0; round < numRounds; round++) {
  const seed = 10 + 3 * round
  const both = [
    async () => direct.push(await runDirect(numStreams, seed)),
    async () => served.push(await runServed(port, numStreams, seed)),
  ]
  // The side that goes first changes, so that neither always follows a pause.
  if (round % 2 === 1) both.reverse()
  for (const run of both) await run()
  single.push(await runServed(port, 1, seed + 1))
}
await ask({ kind: 'close' })

const median = (numbers: readonly number[]): number => quantile(numbers, 0.5)
const directRate = median(direct.map((run) => rate(run, numStreams)))
const servedRate = median(served.map((run) => rate(run, numStreams)))
const singleRate = median(single.map((run) => rate(run, 1)))
const perToken = (runs: readonly Measured[], field: 'loopMs' | 'cpuMs' | 'mainCpuMs') =>
  median(runs.map((run) => (1000 * run[field]) / (numStreams * numTokens)))
const report = {
  version: 1,
  suite: 'serve-overhead',
  machine: describeMachine(),
  options: { ...values, streams: numStreams, tokens: numTokens, rounds: numRounds },
  direct: {
    tokensPerSecond: directRate,
    loopUsPerToken: perToken(direct, 'loopMs'),
    mainCpuUsPerToken: perToken(direct, 'mainCpuMs'),
    processCpuUsPerToken: perToken(direct, 'cpuMs'),
  },
  served: {
    tokensPerSecond: servedRate,
    loopUsPerToken: perToken(served, 'loopMs'),
    mainCpuUsPerToken: perToken(served, 'mainCpuMs'),
    processCpuUsPerToken: perToken(served, 'cpuMs'),
    clientCpuUsPerToken: (median(clientMs) * 1000) / (numStreams * numTokens),
    eventLoopDelayP99Ms: median(served.map((run) => run.delayP99Ms)),
    eventLoopDelayMaxMs: median(served.map((run) => run.delayMaxMs)),
    eventLoopUtilization: median(served.map((run) => run.loopMs / run.wallMs)),
  },
  single: { tokensPerSecond: singleRate },
  overhead: median(direct.map((run, at) => 1 - run.wallMs / served[at].wallMs)),
  overSingle: servedRate / singleRate,
  rounds: { direct, served, single },
}
const { rounds: _, machine, ...summary } = report
console.log(JSON.stringify({ load: machine.loadAverage, ...summary }, null, 2))
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`)
