/** `nanoweave doctor`: what was found, what is missing, what to do about it. Runs with no addon. */

import type { Command } from 'commander'
import { type Check, runChecks } from '../checks.ts'
import { EXIT_FAILED, EXIT_OK } from '../exit-codes.ts'
import { writeJson, writeOut } from '../output.ts'

const marks: Readonly<Record<Check['status'], string>> = { ok: 'ok', note: '–', failed: 'FAILED' }

function formatChecks(checks: readonly Check[]): string {
  const width = Math.max(...checks.map(({ name }) => name.length))
  const indent = ' '.repeat(8 + width + 2)
  return checks
    .map(({ name, status, found, todo }) => {
      const line = `${marks[status].padEnd(8)}${name.padEnd(width)}  ${found}\n`
      return todo === undefined ? line : `${line}${indent}→ ${todo}\n`
    })
    .join('')
}

async function runDoctor(flags: { readonly json?: boolean }): Promise<void> {
  const checks = await runChecks()
  const isHealthy = checks.every(({ status }) => status !== 'failed')
  if (flags.json === true) await writeJson({ healthy: isHealthy, checks })
  else await writeOut(formatChecks(checks))
  process.exitCode = isHealthy ? EXIT_OK : EXIT_FAILED
}

export function registerDoctor(program: Command): void {
  program
    .command('doctor')
    .summary('what was found, what is missing, what to do')
    .description(
      'Checks Node, the native addon, devices and compilers. Exit code 1: cannot run models.',
    )
    .option('--json', 'one JSON document instead of text')
    .action(runDoctor)
}
