/**
 * What compiling grammars costs those who do not use them: streams run on the demo model while new
 * schemas arrive, in turn with the same requests without a schema; the time between two tokens of the
 * streams, of both:
 *
 *   npx tsx bench/grammar-delay.ts [--streams 8] [--rounds 10] [--threads 1] [--json FILE]
 *
 * A schema is written as EBNF and compiled in a worker thread. What is left on the event loop, parsing the body and
 * putting the schema to the worker, is also measured alone, in processor time of a warm process: on a
 * shared machine gaps show the neighbours.
 */

import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { describeMachine } from '../lib/bench/machine.ts'
import { quantile } from '../lib/bench/stats.ts'
import { readGrammar } from '../lib/grammar/grammar.ts'
import { writeGrammar } from '../lib/grammar/write-grammar.ts'
import { Engine, EngineError } from '../lib/index.ts'

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'models/tiny-dense' },
    streams: { type: 'string', default: '8' },
    rounds: { type: 'string', default: '10' },
    threads: { type: 'string', default: '1' },
    json: { type: 'string' },
  },
})
const numStreams = Number(values.streams)
const numRounds = Number(values.rounds)
/** Properties of the schemas that arrive; the last comes near the limit of 256 KiB. */
const SIZES = [10, 50, 200, 3000] as const
const REQUESTS_PER_ROUND = 3

function property(index: number, salt: number): object {
  const kinds = [
    { type: 'string', maxLength: 20 + (salt % 10) },
    { type: 'integer', minimum: index % 500, maximum: 1000 + salt },
    { enum: ['red', 'green', `colour ${salt}`] },
    { type: 'array', items: { type: 'number' }, maxItems: 5 },
    { type: 'object', properties: { a: { type: 'boolean' }, b: { type: 'string' } } },
    { type: 'string', pattern: '^[a-z]{2,9}$' },
  ]
  return kinds[index % kinds.length]!
}

/** No two salts give the same grammar. */
function schemaOf(numProperties: number, salt: number): object {
  const names = Array.from({ length: numProperties }, (_, index) => `field_${salt}_${index}`)
  return {
    type: 'object',
    properties: Object.fromEntries(names.map((name, index) => [name, property(index, salt)])),
    required: names,
  }
}

class Streams {
  readonly gaps: number[] = []
  readonly #controller = new AbortController()
  readonly #ends: Promise<void>[]
  isRecording = false

  constructor(engine: Engine, count: number) {
    this.#ends = Array.from({ length: count }, (_, index) => this.#run(engine, index))
  }

  async stop(): Promise<void> {
    this.#controller.abort()
    await Promise.allSettled(this.#ends)
  }

  /** One output after another, for the context is short. */
  async #run(engine: Engine, index: number): Promise<void> {
    for (let output = 0; !this.#controller.signal.aborted; output++) {
      let lastMs = 0
      const { signal } = this.#controller
      const tokens = [11, 12, 13 + index]
      const request = { tokens, maxTokens: 1500, ignoreEos: true, temperature: 1, signal }
      for await (const chunk of engine.generate({ ...request, seed: output })) {
        const nowMs = performance.now()
        // Chunks that were read together say nothing about a gap.
        if (lastMs > 0 && this.isRecording && chunk.tokens.length > 0)
          this.gaps.push(nowMs - lastMs)
        lastMs = nowMs
      }
    }
  }
}

interface Side {
  readonly gaps: number[]
  numRequests: number
  numRefused: number
}

const emptySide = (): Side => ({ gaps: [], numRequests: 0, numRefused: 0 })

let salt = 0
async function runSide(engine: Engine, streams: Streams, side: Side, size: number | undefined) {
  streams.gaps.length = 0
  streams.isRecording = true
  for (let request = 0; request < REQUESTS_PER_ROUND; request++) {
    const grammar = size === undefined ? undefined : { schema: schemaOf(size, salt++) }
    const asked = { prompt: 'A person:', maxTokens: 4, temperature: 1 }
    side.numRequests++
    try {
      await engine.complete({ ...asked, ...(grammar !== undefined && { grammar }) })
    } catch (error) {
      // More than two seconds to compile: refused, and measured all the same.
      if (!(error instanceof EngineError) || error.code !== 'ERR_USAGE') throw error
      side.numRefused++
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  streams.isRecording = false
  for (const gap of streams.gaps) side.gaps.push(gap)
}

const summarize = ({ gaps, numRequests, numRefused }: Side) => ({
  requests: numRequests,
  refused: numRefused,
  gaps: gaps.length,
  p50Ms: quantile(gaps, 0.5),
  p99Ms: quantile(gaps, 0.99),
  p999Ms: quantile(gaps, 0.999),
  maxMs: Math.max(...gaps),
  above20Ms: gaps.filter((gap) => gap > 20).length,
})

/** Processor time on the event loop from a body to what a worker is sent, milliseconds. */
function onEventLoop(size: number) {
  const times = Array.from({ length: 9 }, () => {
    const body = JSON.stringify({ schema: schemaOf(size, salt++) })
    const before = process.cpuUsage()
    const { source } = readGrammar(JSON.parse(body))
    createHash('sha256').update(source).digest('base64')
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1000
  })
  return { medianMs: quantile(times, 0.5), maxMs: Math.max(...times) }
}

/** Processor time of the same schemas on their way to EBNF, in the worker. */
function inWorker(size: number) {
  const times = Array.from({ length: 5 }, () => {
    const { source } = readGrammar({ schema: schemaOf(size, salt++) })
    const before = process.cpuUsage()
    writeGrammar(JSON.parse(source))
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1000
  })
  return { medianMs: quantile(times, 0.5), maxMs: Math.max(...times) }
}

const bytesOf = (size: number) => JSON.stringify(schemaOf(size, 0)).length

for (let warm = 0; warm < 5; warm++) {
  onEventLoop(100)
  inWorker(100)
}
const costs = SIZES.map((size) => ({ onEventLoop: onEventLoop(size), inWorker: inWorker(size) }))
const engine = await Engine.load(values.model, { threads: Number(values.threads) })
const quiet = emptySide()
const sides = SIZES.map(emptySide)
const streams = new Streams(engine, numStreams)
try {
  await engine.complete({ prompt: 'A', maxTokens: 2, grammar: { json: true } })
  for (let round = -1; round < numRounds; round++) {
    const isWarmUp = round < 0
    for (const [at, size] of SIZES.entries()) {
      const none = emptySide()
      await runSide(engine, streams, isWarmUp ? none : quiet, undefined)
      await runSide(engine, streams, isWarmUp ? none : sides[at]!, size)
    }
  }
} finally {
  await streams.stop()
  await engine.close()
}

const report = {
  version: 1,
  suite: 'grammar-delay',
  machine: describeMachine(),
  options: { ...values, streams: numStreams, rounds: numRounds },
  without: summarize(quiet),
  compiling: sides.map((side, at) => ({
    schemaBytes: bytesOf(SIZES[at]!),
    ...summarize(side),
    ...costs[at],
  })),
}
const { machine, ...summary } = report
console.log(JSON.stringify({ load: machine.loadAverage, ...summary }, null, 2))
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`)
