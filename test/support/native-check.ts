/** Builds a check of native code (test/native) with the C++ compiler and runs it. */

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** What the check printed: its failures. `sources` are below native/. */
export function runNativeCheck(name: string, sources: readonly string[]): string {
  const native = join(ROOT, 'native')
  const program = join(mkdtempSync(join(tmpdir(), 'nanoweave-check-')), name)
  const files = [join(ROOT, 'test/native', `${name}.cc`), ...sources.map((s) => join(native, s))]
  execFileSync('c++', ['-std=c++20', '-O1', '-I', native, '-o', program, ...files, '-ldl'])
  const { stdout, status, signal } = spawnSync(program, { encoding: 'utf8' })
  return status === 0 ? stdout : `${stdout}exit ${status ?? signal}`
}
