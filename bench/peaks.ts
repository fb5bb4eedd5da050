/**
 * Measures the machine's ceilings with bench/peaks.cc and writes them where `nanoweave bench` looks:
 *
 *   npx tsx bench/peaks.ts [--threads N] [--repeat 5] [--out build/bench-peaks.json]
 *
 * Needs g++. A shared machine is slower at some times than at others, and a ceiling is what it can
 * do: the best of several runs some seconds apart counts, and of what the file already holds for as
 * many threads.
 */

import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { loadPeaks, type Peaks, parsePeaks, type Rate } from '../lib/bench/peaks.ts'

const PAUSE_MS = 3_000

const { values } = parseArgs({
  options: {
    threads: { type: 'string', default: String(os.availableParallelism()) },
    repeat: { type: 'string', default: '5' },
    out: { type: 'string', default: 'build/bench-peaks.json' },
  },
})

function better<R extends Rate | null>(a: R, b: R): R {
  return b !== null && (a === null || b.best > a.best) ? b : a
}

function bestOf(a: Peaks | undefined, b: Peaks): Peaks {
  if (a === undefined || a.threads !== b.threads) return b
  return {
    ...b,
    readBytesPerSecond: better(a.readBytesPerSecond, b.readBytesPerSecond),
    copyBytesPerSecond: better(a.copyBytesPerSecond, b.copyBytesPerSecond),
    f32FlopPerSecond: better(a.f32FlopPerSecond, b.f32FlopPerSecond),
    bf16FlopPerSecond: better(a.bf16FlopPerSecond, b.bf16FlopPerSecond),
  }
}

const folder = path.dirname(values.out)
mkdirSync(folder, { recursive: true })
const program = path.resolve(folder, 'peaks')
const flags = ['-O2', '-std=c++20', '-pthread', 'bench/peaks.cc', '-o', program]
execFileSync('g++', flags, { stdio: 'inherit' })

let peaks = loadPeaks(values.out)
for (let run = 0; run < Number(values.repeat); run++) {
  if (run > 0) await sleep(PAUSE_MS)
  const text = execFileSync(program, [values.threads], { encoding: 'utf8' })
  peaks = bestOf(peaks, parsePeaks(text, program))
}
const text = `${JSON.stringify(peaks, null, 2)}\n`
writeFileSync(values.out, text)
process.stdout.write(text)
