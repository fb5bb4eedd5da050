/** The measured process of serve-overhead.ts: an engine, and a server over it. */

import { readFileSync } from 'node:fs'
import { monitorEventLoopDelay, performance } from 'node:perf_hooks'
import { Engine } from '../lib/engine/engine.ts'
import { createServer } from '../lib/server/server.ts'
import { chatBodies, type Measured, type ServerCommand } from './serve-overhead-load.ts'

const [folder, threads, streams] = process.argv.slice(2)
const engine = await Engine.load(folder, {
  threads: Number(threads),
  maxNumSeqs: Math.max(256, Number(streams)),
  maxWaiting: 4 * Number(streams),
  // Prompts of one round differ from those of another only in part.
  prefixCache: false,
})
const server = createServer(engine, { logLevel: 'silent' })
const delays = monitorEventLoopDelay({ resolution: 1 })

interface Start {
  readonly ms: number
  readonly loop: ReturnType<typeof performance.eventLoopUtilization>
  readonly cpu: NodeJS.CpuUsage
  readonly mainMs: number
}
let start: Start | undefined

function begin(): void {
  delays.reset()
  delays.enable()
  start = {
    ms: performance.now(),
    loop: performance.eventLoopUtilization(),
    cpu: process.cpuUsage(),
    mainMs: mainThreadMs(),
  }
}

/** Processor time of the thread that runs the event loop; 0 where the system does not tell. */
function mainThreadMs(): number {
  try {
    const [runNs] = readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')
    return Number(runNs) / 1e6
  } catch {
    return 0
  }
}

function end(): Measured {
  delays.disable()
  const { ms, loop, cpu, mainMs } = start!
  const used = process.cpuUsage(cpu)
  return {
    wallMs: performance.now() - ms,
    loopMs: performance.eventLoopUtilization(loop).active,
    cpuMs: (used.user + used.system) / 1000,
    mainCpuMs: mainThreadMs() - mainMs,
    delayP99Ms: delays.percentile(99) / 1e6,
    delayMaxMs: delays.max / 1e6,
  }
}

async function runDirect(numStreams: number, numTokens: number, round: number): Promise<Measured> {
  const bodies = chatBodies(numStreams, numTokens, round)
  begin()
  const counts = await Promise.all(
    bodies.map(async ({ messages, max_tokens: maxTokens, temperature, seed }) => {
      let count = 0
      const request = { messages, maxTokens, temperature, seed, ignoreEos: true }
      for await (const chunk of engine.generate(request)) count += chunk.tokens.length
      return count
    }),
  )
  const measured = end()
  if (counts.some((count) => count !== numTokens)) throw new Error('a stream ended early')
  return measured
}

async function answer(command: ServerCommand): Promise<object> {
  switch (command.kind) {
    case 'listen':
      return { port: Number(new URL(await server.listen(0)).port) }
    case 'begin':
      begin()
      return {}
    case 'end':
      return end()
    case 'direct':
      return runDirect(command.streams, command.tokens, command.round)
    case 'close':
      await server.close()
      await engine.close()
      setImmediate(() => process.disconnect())
      return {}
  }
}

process.on('message', (command: ServerCommand) => {
  void answer(command).then((reply) => process.send!(reply))
})
process.send!('loaded')
process.on('disconnect', () => process.exit())
