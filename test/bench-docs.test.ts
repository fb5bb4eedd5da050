/** docs/benchmarks.md says what bench/results/cpu.json holds, and nothing in it was wrong. */

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { replaceTables } from '../bench/table.ts'
import { type BenchReport, countWrong } from '../lib/bench/index.ts'

const page = readFileSync('docs/benchmarks.md', 'utf8')
const { reports }: { reports: BenchReport[] } = JSON.parse(
  readFileSync('bench/results/cpu.json', 'utf8'),
)

describe('recorded results', () => {
  it('are what the page shows', () => {
    expect(replaceTables(page, reports)).toBe(page)
  })

  it('name their machine and commit, and none is wrong', () => {
    for (const report of reports) {
      expect(report.machine.commit).toMatch(/^[0-9a-f]{12}\+?$/)
      // The demo model's weights stay in a cache: there is no peak to compare them with.
      if (report.suite !== 'moe-decode') expect(report.peaks).toBeDefined()
      expect(countWrong(report)).toBe(0)
    }
  })
})
