/** Thousands of random requests: always an answer, never a 500, nothing left behind. */

import { monitorEventLoopDelay } from 'node:perf_hooks'
import { expect, it } from 'vitest'
import { fuzzServer } from './fuzz.ts'
import { expectBaseline, post, serveFake } from './support.ts'

const numRequests = Number(process.env.NANOWEAVE_FUZZ_REQUESTS ?? 3000)
/** Longer than any starved machine takes. */
const HANG_MS = 30_000
const TIMEOUT_MS = 60_000 + 100 * numRequests

it(
  `${numRequests} random requests are answered or refused`,
  async () => {
    const running = await serveFake({}, {}, {})
    try {
      const delays = monitorEventLoopDelay({ resolution: 5 })
      delays.enable()
      const { statuses, malformed, slowestMs } = await fuzzServer(running.url, numRequests, 3)
      delays.disable()
      // A figure of the machine as much as of the server: told, and checked by who runs it alone.
      console.info(
        `${numRequests} requests: the slowest refusal took ${slowestMs.toFixed(0)} ms, the event loop stood still for at most ${(delays.max / 1e6).toFixed(0)} ms`,
        statuses,
      )
      expect(malformed).toEqual([])
      expect(slowestMs).toBeLessThan(HANG_MS)
      const total = Object.values(statuses).reduce((sum, count) => sum + count, 0)
      expect(total).toBe(numRequests)
      const { 200: ok = 0, 400: bad = 0, left = 0, ...others } = statuses
      expect(Math.min(ok, bad, left)).toBeGreaterThan(numRequests / 50)
      // A deadline of one millisecond passes: the only 503.
      expect(
        Object.keys(others).filter((status) => !['404', '415', '503'].includes(status)),
      ).toEqual([])
      expect(others['503'] ?? 0).toBeLessThan(numRequests / 50)
      await expectBaseline(running)
      const { status } = await post(`${running.url}/v1/completions`, { prompt: 'x' })
      expect(status).toBe(200)
    } finally {
      await running.close()
    }
  },
  TIMEOUT_MS,
)
