/**
 * The bench suites, and how one is run: pick it by name, parse sizes, run, gather a report. A new
 * suite is a file in suites/ and a line here.
 */

import { EngineError } from '../errors.ts'
import { describeMachine } from './machine.ts'
import { loadPeaks } from './peaks.ts'
import { type BenchBackend, backendOf } from './placement.ts'
import type { BenchContext, BenchReport, BenchRow, BenchSuite } from './suite.ts'
import { attentionDecodeSuite, attentionPrefillSuite } from './suites/attention.ts'
import { allReduceRmsNormSuite, allReduceSuite } from './suites/collectives.ts'
import { engineSuite } from './suites/engine.ts'
import { groupedMatmulSuite } from './suites/grouped-matmul.ts'
import { matmulSuite } from './suites/matmul.ts'
import { moeDecodeSuite } from './suites/moe-decode.ts'
import { moeDispatchSuite } from './suites/moe-dispatch.ts'
import { moeLayerSuite } from './suites/moe-layer.ts'
import { moeRouteSuite } from './suites/moe-route.ts'
import { overlapSuite } from './suites/overlap.ts'
import { copySuite, rmsNormSuite } from './suites/rows.ts'

export { renderHtml } from './html.ts'
export { backendOf } from './placement.ts'
export { countWrong, formatReport } from './report.ts'
export type { BenchContext, BenchReport, BenchSuite } from './suite.ts'
export { tuneHardware } from './tune.ts'

export const BENCH_SUITES: readonly BenchSuite[] = [
  engineSuite,
  matmulSuite,
  attentionPrefillSuite,
  attentionDecodeSuite,
  rmsNormSuite,
  copySuite,
  allReduceSuite,
  allReduceRmsNormSuite,
  overlapSuite,
  moeRouteSuite,
  moeDispatchSuite,
  groupedMatmulSuite,
  moeLayerSuite,
  moeDecodeSuite,
]

export function findSuite(name: string): BenchSuite {
  const suite = BENCH_SUITES.find((candidate) => candidate.name === name)
  if (suite === undefined) {
    const names = BENCH_SUITES.map((candidate) => candidate.name).join(', ')
    throw new EngineError('ERR_USAGE', `no bench suite named ${name}; there are: ${names}`)
  }
  return suite
}

/** `1x512x64,8x128x64` → [[1, 512, 64], [8, 128, 64]]; every size has as many numbers as the suite names. */
export function parseSizes(
  text: string | undefined,
  suite: BenchSuite,
  backend: BenchBackend = 'cpu',
): readonly (readonly number[])[] {
  if (text === undefined) return backend === 'cuda' ? suite.gpuSizes : suite.defaultSizes
  return text.split(',').map((size) => {
    const numbers = size.split('x').map(Number)
    const valid = numbers.every((value) => Number.isSafeInteger(value) && value > 0)
    if (!valid || numbers.length !== suite.sizeNames.length) {
      const names = suite.sizeNames.join(' x ')
      throw new EngineError('ERR_USAGE', `size ${size}: bench ${suite.name} takes ${names}`)
    }
    return numbers
  })
}

/** `name=value` settings that the suite knows; the last of a name counts. */
export function parseSettings(
  pairs: readonly string[],
  suite: BenchSuite,
): ReadonlyMap<string, string> {
  const settings = new Map<string, string>()
  for (const pair of pairs) {
    const equals = pair.indexOf('=')
    if (equals < 1) throw new EngineError('ERR_USAGE', `setting ${pair}: expected name=value`)
    const name = pair.slice(0, equals)
    if (!suite.settingNames.includes(name)) {
      const names = suite.settingNames.join(', ')
      throw new EngineError('ERR_USAGE', `setting ${name}: bench ${suite.name} has ${names}`)
    }
    settings.set(name, pair.slice(equals + 1))
  }
  return settings
}

/** What holds for every suite on a kind of device. */
function backendNotes(rows: readonly BenchRow[], backend: BenchBackend): string[] {
  if (backend === 'cpu') return []
  const notes = [
    'times are of device events around a step that holds the op once per set of buffers, divided by the ops',
  ]
  if (rows.some(({ virtualRanks }) => virtualRanks === true)) {
    notes.push(
      'virtual ranks: all ranks share one GPU, no link takes part. The bound is its memory bandwidth over the bytes of all ranks; bus GB/s is nccl-tests’ formula on that memory traffic, not the speed of a link',
    )
  }
  return notes
}

/** `peaksFile` may be missing: then the report has no "% of peak". */
export async function runSuite(
  suite: BenchSuite,
  context: BenchContext,
  peaksFile: string,
): Promise<BenchReport> {
  const backend = backendOf(context.device)
  const machine = describeMachine(backend)
  const peaks = loadPeaks(peaksFile)
  if (peaks !== undefined && (peaks.device !== undefined) !== (backend === 'cuda')) {
    const of = peaks.device ?? `${peaks.threads} CPU threads`
    throw new EngineError('ERR_USAGE', `${peaksFile} has the peaks of ${of}, not of ${backend}`)
  }
  const { rows, notes, details } = await suite.run(context)
  const mismatch =
    backend === 'cpu' && peaks !== undefined && peaks.threads !== context.threads
      ? [`the peaks file is for ${peaks.threads} threads, this run used ${context.threads}`]
      : []
  const { ranks, threads, device, dtype, rounds, settings } = context
  return {
    version: 1,
    suite: suite.name,
    machine,
    ...(peaks !== undefined && { peaks }),
    options: { ranks, threads, device, dtype, rounds, ...Object.fromEntries(settings) },
    rows,
    notes: [...notes, ...mismatch, ...backendNotes(rows, backend)],
    details,
  }
}
