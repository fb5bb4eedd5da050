/**
 * How much of the machine other processes (and the hypervisor) used while something was measured.
 * Engines that spin at barriers lose far more than their share when a core is taken away, so a
 * measurement on a busy machine says little even as a ratio. Linux only; elsewhere unknown.
 */

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { EngineError } from '../errors.ts'
import { quantile } from './stats.ts'

/** Jiffies since boot over all cores. */
interface CpuCounters {
  readonly total: number
  /** Not idle and not waiting for a disk; steal counted too. */
  readonly busy: number
  /** Of which by the processes named. */
  readonly own: number
}

/** user + system jiffies of a process with all its threads; 0 once it is gone. */
function processJiffies(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // Fields after the parenthesised name, which may hold spaces: utime and stime are 14 and 15.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return Number(fields[11]) + Number(fields[12])
  } catch {
    return 0
  }
}

function readCounters(pids: readonly number[]): CpuCounters | undefined {
  try {
    const line = /^cpu +(.*)$/m.exec(readFileSync('/proc/stat', 'utf8'))![1]!
    const [user, nice, system, idle, iowait, irq, softirq, steal] = line.split(' ').map(Number)
    const busy = user! + nice! + system! + irq! + softirq! + steal!
    const own = pids.reduce((sum, pid) => sum + processJiffies(pid), 0)
    return { total: busy + idle! + iowait!, busy, own }
  } catch {
    return undefined
  }
}

function othersShare(before: CpuCounters, after: CpuCounters): number {
  const total = after.total - before.total
  if (total <= 0) return 0
  return Math.max(0, after.busy - before.busy - (after.own - before.own)) / total
}

const PROBE_MS = 400
/** Wait for a quiet machine before trying again, at most. */
const PAUSE_MS = 5_000
const DEADLINE_MS = 3_600_000

/**
 * Watches the whole machine on behalf of a bench. With `limit` (0..1, a share of all cores) it also
 * repeats what was disturbed by more than that.
 */
export class DisturbanceMeter {
  readonly #pids: readonly number[]
  readonly #limit: number | undefined
  readonly #shares: number[] = []
  #discarded = 0

  constructor(pids: readonly number[], limit: number | undefined) {
    this.#pids = [process.pid, ...pids]
    this.#limit = limit
  }

  /** Shares of the machine others used during the measurements that were kept. */
  get shares(): readonly number[] {
    return this.#shares
  }

  /** Measurements thrown away because others used more than the limit. */
  get discarded(): number {
    return this.#discarded
  }

  /** Runs `measure`; under a limit, again until it was quiet enough. ERR_DEADLINE after an hour. */
  async watch<Sample>(measure: () => Promise<Sample>): Promise<Sample> {
    const deadline = performance.now() + DEADLINE_MS
    for (;;) {
      const before = readCounters(this.#pids)
      const sample = await measure()
      const after = readCounters(this.#pids)
      const share = before && after ? othersShare(before, after) : 0
      if (this.#limit === undefined || share <= this.#limit) {
        this.#shares.push(share)
        return sample
      }
      this.#discarded++
      if (performance.now() > deadline) {
        throw new EngineError(
          'ERR_DEADLINE',
          'the machine was never quiet for an hour; measure later, or raise --quiet',
        )
      }
      await this.#waitUntilQuiet(this.#limit)
    }
  }

  async #waitUntilQuiet(limit: number): Promise<void> {
    const end = performance.now() + PAUSE_MS
    while (performance.now() < end) {
      const before = readCounters(this.#pids)
      await sleep(PROBE_MS)
      const after = readCounters(this.#pids)
      if (!before || !after || othersShare(before, after) <= limit) return
    }
  }

  /** For the notes below a table. */
  describe(): string {
    const percent = (share: number) => `${(share * 100).toFixed(1)}%`
    const most = percent(Math.max(...this.#shares))
    return `other processes used ${percent(quantile(this.#shares, 0.5))} of the machine in the median measurement, ${most} at most; ${this.#discarded} measurements were repeated for that`
  }
}
