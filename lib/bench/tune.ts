/**
 * Calibration: runs a few one-op suites on this machine and turns what they measured into the rates of
 * the planner's cost model. What cannot be measured here (how lanes slow each other down) stays as the
 * preset of the device says. Less than a minute.
 */

import { availableParallelism } from 'node:os'
import { EngineError } from '../errors.ts'
import type { Hardware } from '../planner/hardware.ts'
import { describeMachine } from './machine.ts'
import type { BenchContext, BenchRow, BenchSuite } from './suite.ts'
import { attentionDecodeSuite, attentionPrefillSuite } from './suites/attention.ts'
import { allReduceSuite } from './suites/collectives.ts'
import { matmulSuite } from './suites/matmul.ts'
import { copySuite, rmsNormSuite } from './suites/rows.ts'

type TuneContext = Omit<BenchContext, 'sizes' | 'settings'>

/** Seconds of the one case, verified. */
async function secondsOf(
  context: TuneContext,
  suite: BenchSuite,
  size: readonly number[],
): Promise<{ readonly seconds: number; readonly row: BenchRow }> {
  const result = await suite.run({ ...context, sizes: [size], settings: new Map() })
  const row = result.rows[0]
  if (row === undefined) throw new EngineError('ERR_INTERNAL', `${suite.name} measured nothing`)
  if (row.wrong > 0) {
    throw new EngineError('ERR_INTERNAL', `${suite.name} gave wrong results; nothing was tuned`)
  }
  return { seconds: row.ours.medianUs / 1e6, row }
}

/**
 * Hardware as measured, on top of `base`, the preset of the device. `context.ranks` ≥ 2 also measures
 * collectives between so many ranks.
 */
export async function tuneHardware(context: TuneContext, base: Hardware): Promise<Hardware> {
  const alone = { ...context, ranks: 1 }
  const half = await secondsOf(alone, matmulSuite, [512, 4096, 1024])
  const f32 = await secondsOf({ ...alone, dtype: 'f32' }, matmulSuite, [512, 2048, 1024])
  const copy = await secondsOf(alone, copySuite, [4096, 4096])
  const tiny = await secondsOf(alone, rmsNormSuite, [1, 64])
  const prefill = await secondsOf(alone, attentionPrefillSuite, [1024])
  const decode = await secondsOf(alone, attentionDecodeSuite, [8, 2048])
  const memoryBytesPerSecond = copy.row.bytes / copy.seconds
  const pagedRate = decode.row.bytes / decode.seconds
  const machine = describeMachine()
  return {
    ...base,
    name: 'tuned',
    title: `${machine.cpu}, ${context.threads} threads`,
    units: Math.min(context.threads, availableParallelism()),
    matmulFlopPerSecond: {
      half: half.row.flops / half.seconds,
      f32: f32.row.flops / f32.seconds,
    },
    attentionFlopPerSecond: prefill.row.flops / prefill.seconds,
    memoryBytesPerSecond,
    pagedEfficiency: Math.min(1, pagedRate / memoryBytesPerSecond),
    memoryBytes: machine.memoryBytes,
    launchSeconds: tiny.seconds,
    interconnect: await tuneInterconnect(context, base),
    sources: [
      `nanoweave bench --tune, ${machine.date}, commit ${machine.commit ?? 'unknown'}, load ${machine.loadAverage.toFixed(2)}`,
      `interference and tiles: ${base.title}, not measured here`,
    ],
  }
}

/** A straight line through two sizes: latency, and nccl-tests' bus bandwidth. */
async function tuneInterconnect(
  context: TuneContext,
  base: Hardware,
): Promise<Hardware['interconnect']> {
  const { ranks } = context
  if (ranks < 2) return base.interconnect
  const [fewRows, manyRows, width] = [8, 2048, 1024]
  const small = await secondsOf(context, allReduceSuite, [fewRows, width])
  const large = await secondsOf(context, allReduceSuite, [manyRows, width])
  const elementBytes = context.dtype === 'f32' ? 4 : 2
  const wire = (rows: number) => (2 * (ranks - 1) * rows * width * elementBytes) / ranks
  const perByte = (large.seconds - small.seconds) / (wire(manyRows) - wire(fewRows))
  // On a busy machine the small one may come out slower.
  const rate = perByte > 0 ? 1 / perByte : wire(manyRows) / large.seconds
  const latencySeconds = Math.max(0, small.seconds - wire(fewRows) / rate)
  return { kind: base.interconnect.kind, latencySeconds, busBytesPerSecond: rate }
}
