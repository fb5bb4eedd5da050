/**
 * Timelines in the Trace Event Format (https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU),
 * which chrome://tracing and Perfetto open: a process per schedule and rank, a thread per lane.
 */

import { LANES } from '../program/types.ts'
import type { LayerTimeline, PlanReport } from './report.ts'

interface TraceEvent {
  readonly name: string
  readonly ph: 'X' | 'M'
  readonly pid: number
  readonly tid: number
  /** Microseconds. */
  readonly ts?: number
  readonly dur?: number
  readonly cat?: string
  readonly args?: Readonly<Record<string, unknown>>
}

export interface ChromeTrace {
  readonly traceEvents: readonly TraceEvent[]
  readonly displayTimeUnit: 'ns'
  /** The plan without its timelines. */
  readonly otherData: Readonly<Record<string, unknown>>
}

export function chromeTrace(report: PlanReport): ChromeTrace {
  const { serial, overlapped, ranks, ...rest } = report
  const traceEvents: TraceEvent[] = []
  const timelines = [{ name: 'serial', timeline: serial }]
  if (overlapped !== undefined) timelines.push({ name: 'overlapped', timeline: overlapped })
  timelines.forEach(({ name, timeline }, index) => {
    for (let rank = 0; rank < ranks; rank++) {
      addProcess(traceEvents, index * ranks + rank, `${name}, rank ${rank}`, timeline)
    }
  })
  return { traceEvents, displayTimeUnit: 'ns', otherData: { ranks, ...rest } }
}

/** Ranks of a group do the same work at the same time, as far as the model knows. */
function addProcess(events: TraceEvent[], pid: number, name: string, { ops }: LayerTimeline): void {
  events.push({ name: 'process_name', ph: 'M', pid, tid: 0, args: { name } })
  LANES.forEach((lane, tid) => {
    events.push({ name: 'thread_name', ph: 'M', pid, tid, args: { name: lane } })
  })
  for (const op of ops) {
    events.push({
      name: op.label,
      ph: 'X',
      pid,
      tid: LANES.indexOf(op.lane),
      ts: 1e6 * op.startSeconds,
      dur: 1e6 * (op.endSeconds - op.startSeconds),
      cat: op.kind,
      args: { aloneUs: 1e6 * op.soloSeconds, critical: op.isCritical, part: op.part ?? 'all' },
    })
  }
}
