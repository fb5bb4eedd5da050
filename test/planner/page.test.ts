/** `nanoweave plan` and its page: as text anywhere, and in Chromium where there is one. */

import { describe, expect, it } from 'vitest'
import { chromeTrace } from '../../lib/planner/chrome-trace.ts'
import { renderPlan } from '../../lib/planner/page.ts'
import { hardwarePreset } from '../../lib/planner/presets.ts'
import { planReport } from '../../lib/planner/report.ts'
import { mixedShape } from '../../lib/planner/step-shape.ts'
import { LANES } from '../../lib/program/types.ts'
import { openInChromium } from '../support/chromium.ts'
import { presetProgram } from './programs.ts'

const report = planReport({
  model: 'llama-3-70b <&>',
  hardware: hardwarePreset('h100'),
  program: presetProgram('llama-3-70b', 8),
  shape: mixedShape({ numTokens: 2048, numDecodes: 0, context: 0, promptLength: 2048 }),
})

describe('a plan', () => {
  it('draws a layer whose lanes never run two ops at once', () => {
    for (const { ops, seconds } of [report.serial, report.overlapped!]) {
      for (const lane of LANES) {
        let end = 0
        for (const op of ops.filter((one) => one.lane === lane)) {
          expect(op.startSeconds).toBeGreaterThanOrEqual(end - 1e-12)
          end = op.endSeconds
        }
        expect(end).toBeLessThanOrEqual(seconds)
      }
    }
  })

  it('runs the collective of one half beside the matmuls of the other', () => {
    const { ops } = report.overlapped!
    const sums = ops.filter((op) => op.kind === 'all_reduce_rms_norm')
    const beside = sums.filter((sum) =>
      ops.some(
        (op) =>
          op.lane === 'compute' &&
          op.part !== sum.part &&
          op.startSeconds < sum.endSeconds &&
          op.endSeconds > sum.startSeconds,
      ),
    )
    expect(beside.length).toBe(sums.length)
    expect(report.overlapped!.seconds).toBeLessThan(report.serial.seconds)
  })

  it('has a critical chain that ends with the layer', () => {
    for (const { ops } of [report.serial, report.overlapped!]) {
      expect(ops.some((op) => op.isCritical)).toBe(true)
    }
    // Nothing runs beside anything: all of it decides.
    expect(report.serial.ops.every((op) => op.isCritical)).toBe(true)
  })

  it('is a Chrome trace: a process per schedule and rank, a thread per lane', () => {
    const { traceEvents, otherData } = chromeTrace(report)
    expect(new Set(traceEvents.map(({ pid }) => pid)).size).toBe(16)
    for (const event of traceEvents.filter(({ ph }) => ph === 'X')) {
      expect(event.ts).toBeGreaterThanOrEqual(0)
      expect(event.dur).toBeGreaterThanOrEqual(0)
      expect([0, 1, 2]).toContain(event.tid)
    }
    expect(JSON.parse(JSON.stringify(otherData)).decision.gain).toBeGreaterThan(0.03)
  })

  it('is one page that loads nothing and escapes names', () => {
    const page = renderPlan(report)
    expect(page).toContain('llama-3-70b &lt;&amp;&gt;')
    expect(page).not.toMatch(/<script|<link|\bsrc=|url\((?!#)/)
  })

  it('is readable in Chromium', async (context) => {
    const page = await openInChromium(renderPlan(report, [{ name: 'serial', seconds: 0.09 }]))
    if (page === undefined) return context.skip('no Chromium here')
    try {
      expect(await page.title()).toContain('nanoweave plan')
      expect(page.problems).toEqual([])
      const boxes = await page.boxes('svg rect.compute')
      expect(boxes.length).toBeGreaterThan(10)
      // Inside the page, with a height that can be seen.
      for (const { x, width, height } of boxes) {
        expect(x + width).toBeLessThanOrEqual(1100)
        expect(height).toBeGreaterThan(20)
      }
      // Names fit their boxes.
      expect(await page.overflowing('svg g', 'rect', 'text')).toEqual([])
    } finally {
      await page.close()
    }
  })
})
