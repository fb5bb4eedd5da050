/**
 * The machine's ceilings, as bench/peaks.cc measures them with loops that do nothing else, and those
 * of a GPU, as bench/gpu/probe.cu does. They are read from a file, made once per machine.
 * Without the file the "% of peak" column stays empty; nothing is estimated.
 */

import { existsSync, readFileSync } from 'node:fs'
import { EngineError } from '../errors.ts'

export interface Rate {
  readonly best: number
  readonly median: number
}

export interface Peaks {
  /** CPU threads; of a GPU its multiprocessors. */
  readonly threads: number
  /** The GPU they were measured on; absent: the CPU. */
  readonly device?: string
  readonly readBytesPerSecond: Rate
  /** Bytes read plus bytes written. */
  readonly copyBytesPerSecond: Rate
  readonly f32FlopPerSecond: Rate | null
  /** bf16 products summed in f32; null: no such instruction. */
  readonly bf16FlopPerSecond: Rate | null
  readonly instructionSet: string
}

function isRate(value: unknown): value is Rate {
  const rate = value as Rate | null
  return typeof rate?.best === 'number' && rate.best > 0 && typeof rate.median === 'number'
}

export function parsePeaks(text: string, file: string): Peaks {
  let peaks: Peaks
  try {
    peaks = JSON.parse(text)
  } catch (cause) {
    throw new EngineError('ERR_USAGE', `${file} is not JSON; make it with bench/peaks.ts`, {
      cause,
    })
  }
  const rates = [peaks.readBytesPerSecond, peaks.copyBytesPerSecond]
  const optional = [peaks.f32FlopPerSecond, peaks.bf16FlopPerSecond]
  const valid =
    rates.every(isRate) &&
    optional.every((rate) => rate === null || isRate(rate)) &&
    peaks.threads > 0
  if (!valid)
    throw new EngineError('ERR_USAGE', `${file} has no rates; make it with bench/peaks.ts`)
  return peaks
}

/** Undefined when the file does not exist. */
export function loadPeaks(file: string): Peaks | undefined {
  return existsSync(file) ? parsePeaks(readFileSync(file, 'utf8'), file) : undefined
}

/**
 * Seconds one iteration takes at least on this machine, and which ceiling says so: the larger of
 * its bytes over bandwidth and its operations over the multiply-add rate (the roofline of Williams,
 * Waterman and Patterson, 2009). Undefined where the ceiling is not known.
 */
export function rooflineSeconds(
  work: {
    readonly bytes: number
    readonly flops: number
    readonly memoryPeak: 'read' | 'copy'
    readonly computePeak: 'f32' | 'bf16'
  },
  peaks: Peaks,
): { readonly seconds: number; readonly bound: 'memory' | 'compute' } | undefined {
  const memory = work.memoryPeak === 'read' ? peaks.readBytesPerSecond : peaks.copyBytesPerSecond
  // bf16 operands may always be widened and multiplied in f32.
  const compute =
    work.computePeak === 'bf16' && peaks.bf16FlopPerSecond !== null
      ? peaks.bf16FlopPerSecond
      : peaks.f32FlopPerSecond
  if (compute === null) return undefined
  const bytesSeconds = work.bytes / memory.best
  const flopSeconds = work.flops / compute.best
  return bytesSeconds >= flopSeconds
    ? { seconds: bytesSeconds, bound: 'memory' }
    : { seconds: flopSeconds, bound: 'compute' }
}
