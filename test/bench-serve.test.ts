/** `nanoweave bench serve`: what it sends, what it reports, what it makes of servers that misbehave. */

import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { describeMachine } from '../lib/bench/machine.ts'
import { verdict } from '../lib/bench/serve/compare.ts'
import {
  compareReports,
  formatComparison,
  formatReport,
  parseReport,
  renderHtml,
  runServeBench,
  type ServeBench,
} from '../lib/bench/serve/index.ts'
import { summarizeRun } from '../lib/bench/serve/report.ts'
import type { RequestRecord } from '../lib/bench/serve/run.ts'
import { expectBaseline, type Running, serveFake } from './server/support.ts'
import { codeOf as thrownBy } from './support/errors.ts'
import { codeOf } from './support/fake-engine.ts'

const bench = (url: string, options: Partial<ServeBench> = {}) =>
  runServeBench({
    url,
    model: undefined,
    apiKey: undefined,
    endpoint: 'completions',
    ignoreEos: true,
    timeoutMs: 20_000,
    seed: 1,
    signal: new AbortController().signal,
    trace: { name: 'lmsys', text: undefined },
    arrivals: undefined,
    rate: 200,
    concurrency: undefined,
    numRequests: 30,
    durationMs: undefined,
    maxPromptTokens: 60,
    maxOutputTokens: 12,
    targets: { ttftMs: undefined, tpotMs: undefined },
    onProgress: () => {},
    ...options,
  })

describe('against the server of this package', () => {
  let running: Running
  beforeAll(async () => {
    running = await serveFake({ apiKeys: ['key'] }, {}, {})
  })
  afterAll(() => running.close())
  afterEach(() => expectBaseline(running))

  it('sends all requests, and counts their tokens', async () => {
    const progress: number[] = []
    const report = await bench(running.url, {
      apiKey: 'key',
      targets: { ttftMs: 1e6, tpotMs: 1e6 },
      onProgress: (done, total) => progress.push(done / total),
    })
    expect([report.requests, report.succeeded, report.errors]).toEqual([30, 30, {}])
    expect(progress).toHaveLength(30)
    expect(progress.at(-1)).toBe(1)
    expect(report.goodput).toBeCloseTo(report.requestsPerSecond)
    expect(report.outputTokens).toBe(report.rows.reduce((sum, row) => sum + row.outputTokens, 0))
    expect(Math.max(...report.rows.map((row) => row.outputTokens))).toBe(12)
    for (const row of report.rows) expect(row.ttftMs).toBeLessThanOrEqual(row.e2eMs)
    expect(report.options).toMatchObject({ model: 'tiny-dense', rate: 200 })
    expect(JSON.parse(JSON.stringify(report))).toEqual(report)
    expect(formatReport(report)).toMatch(/TTFT .*\n.*TPOT/)
    expect(renderHtml(report)).toMatch(/<svg/)
  })

  it('writes prompts of the wanted length, closed loop and chat too', async () => {
    const text = '{"promptTokens": 300, "outputTokens": 3}'
    for (const endpoint of ['completions', 'chat'] as const) {
      const report = await bench(running.url, {
        apiKey: 'key',
        endpoint,
        trace: { name: 'file', text },
        rate: undefined,
        concurrency: 4,
        numRequests: 12,
        maxPromptTokens: 1000,
      })
      expect(report.succeeded).toBe(12)
      for (const { promptTokens, outputTokens } of report.rows) {
        expect(Math.abs(promptTokens / 300 - 1)).toBeLessThan(0.1)
        expect(outputTokens).toBe(3)
      }
    }
  })

  it('tells errors from answers', async () => {
    expect(await codeOf(bench(running.url, { apiKey: 'wrong' }))).toBe('ERR_IO')
    expect(await codeOf(bench('ftp://x'))).toBe('ERR_USAGE')
    expect(await codeOf(bench('http://127.0.0.1:1'))).toBe('ERR_IO')
    expect(await codeOf(bench(running.url, { trace: { name: 'none', text: undefined } }))).toBe(
      'ERR_IO',
    )
    const both = { apiKey: 'key', concurrency: 2 }
    expect(await codeOf(bench(running.url, both))).toBe('ERR_USAGE')
  })

  it('can be interrupted', async () => {
    const controller = new AbortController()
    const promise = bench(running.url, {
      apiKey: 'key',
      rate: 1,
      signal: controller.signal,
      onProgress: () => controller.abort(),
    })
    expect(await codeOf(promise)).toBe('ERR_ABORTED')
  })
})

describe('against servers that misbehave', () => {
  let server: Server
  afterEach(() => new Promise((resolve) => server.close(resolve)))

  /** Answers the two probes well, and everything after them with `misbehave`. */
  async function start(misbehave: RequestListener): Promise<string> {
    let numPosts = 0
    server = createServer((request, response) => {
      if (request.method === 'GET') {
        response.end('{"data": [{"id": "m"}]}')
        return
      }
      request.resume()
      if (numPosts++ >= 2) return misbehave(request, response)
      const usage = { prompt_tokens: numPosts === 1 ? 200 : 1, completion_tokens: 1 }
      response.end(
        `data: ${JSON.stringify({ choices: [{ text: 'x' }], usage })}\n\ndata: [DONE]\n\n`,
      )
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  const cases: readonly (readonly [string, RequestListener, RegExp])[] = [
    ['refuse', (_, response) => response.writeHead(429).end('{}'), /^status 429$/],
    ['hang', () => {}, /^timeout$/],
    ['hang up', (_, response) => response.destroy(), /socket hang up|ECONNRESET/],
    ['stop early', (_, response) => response.end('data: {"choices": []}\n\n'), /without \[DONE\]/],
    ['send no JSON', (_, response) => response.end('data: {\n\n'), /not JSON/],
    ['send an error', (_, r) => r.end('data: {"error": {"code": "failed"}}\n\n'), /^failed$/],
    ['send nothing', (_, response) => response.end('data: [DONE]\n\n'), /^no token came$/],
    ['never end a line', (_, response) => response.end('x'.repeat(2 ** 21)), /too long/],
  ]
  it.each(cases)('%s', async (_, misbehave, error) => {
    const url = await start(misbehave)
    const report = await bench(url, { numRequests: 3, timeoutMs: 1500 })
    server.closeAllConnections()
    expect([report.requests, report.succeeded]).toEqual([3, 0])
    const [name] = Object.keys(report.errors)
    expect(name).toMatch(error)
    expect(report.errors[name]).toBe(3)
    expect(report.ttftMs).toBe(null)
    expect(formatReport(report)).toContain('error:')
  })
})

describe('reports', () => {
  const header = { machine: describeMachine(), options: { rate: 1 } }
  const record = (at: number, scale: number): RequestRecord => ({
    plannedMs: at,
    lateMs: at === 3 ? 50 : 0,
    error: undefined,
    ttftMs: scale * (10 + (at % 7)),
    gapsMs: [scale * 5, scale * 5],
    totalMs: scale * (20 + (at % 7)),
    promptTokens: 10,
    outputTokens: 3,
  })
  const report = (scale: number, count = 100, targets = {}) =>
    summarizeRun(
      { records: Array.from({ length: count }, (_, at) => record(at, scale)), wallMs: 2000 },
      { ttftMs: undefined, tpotMs: undefined, ...targets },
      header,
    )

  it('count what is inside the targets, and what began late', () => {
    const { goodput, requestsPerSecond, outputTokensPerSecond, lateStarts, tpotMs } = report(
      1,
      98,
      { ttftMs: 12.5, tpotMs: 5 },
    )
    expect(requestsPerSecond).toBe(49)
    expect(outputTokensPerSecond).toBe(147)
    // Three of seven have 10, 11 or 12 ms.
    expect(goodput).toBeCloseTo(21)
    expect(lateStarts).toBe(1)
    expect(tpotMs).toEqual({ p50: 5, p90: 5, p99: 5 })
    expect(report(1, 98, { tpotMs: 4.9 }).goodput).toBe(0)
  })

  it('compare: real, undecided, and too few to tell', () => {
    const verdicts = (scale: number, count?: number) =>
      compareReports(report(1, count), report(scale, count)).map(
        (change) => `${change.name}: ${verdict(change)}`,
      )
    expect(verdicts(2)).toContain('TTFT p50, ms: higher')
    expect(verdicts(0.5)).toContain('end to end p50, ms: lower')
    expect(verdicts(1)).toContain('TTFT p50, ms: undecided')
    expect(verdicts(2, 10)).toContain('TTFT p50, ms: too few requests: cannot tell')
    expect(verdicts(2)).toContain('output tokens/s: one figure a run: cannot tell')
    expect(formatComparison(report(1), report(2))).toMatch(/TTFT p50, ms .* 2\.00 .*higher/)
  })

  it('are told from other files', () => {
    expect(parseReport(JSON.stringify(report(1)), 'a').requests).toBe(100)
    for (const text of ['', '{}', '{"suite": "matmul"}'])
      expect(thrownBy(() => parseReport(text, 'a'))).toBe('ERR_USAGE')
  })
})
