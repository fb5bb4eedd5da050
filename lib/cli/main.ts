#!/usr/bin/env node
/**
 * The command line. stdout carries data only; logs, progress and errors go to stderr. Exit codes:
 * 0 ok, 1 failed, 2 usage, 3 unsupported, 130 interrupted. A command is a file in commands/ and a
 * line below.
 */

import { readFileSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { Command, CommanderError } from 'commander'
import { EngineError } from '../errors.ts'
import type { RegisterCommand } from './command.ts'
import { registerBench } from './commands/bench.ts'
import { registerChat } from './commands/chat.ts'
import { registerDemo } from './commands/demo.ts'
import { registerDoctor } from './commands/doctor.ts'
import { registerGenerate } from './commands/generate.ts'
import { registerInspect } from './commands/inspect.ts'
import { registerPlan } from './commands/plan.ts'
import { registerScore } from './commands/score.ts'
import { registerServe } from './commands/serve.ts'
import { registerSimulate } from './commands/simulate.ts'
import { describeError } from './describe-error.ts'
import { EXIT_FAILED, EXIT_OK, EXIT_USAGE, exitCodeOf } from './exit-codes.ts'
import { type Interrupt, listenForInterrupt } from './interrupt.ts'
import { note } from './output.ts'

const commands: readonly RegisterCommand[] = [
  registerDemo,
  registerGenerate,
  registerChat,
  registerServe,
  registerScore,
  registerInspect,
  registerBench,
  registerPlan,
  registerSimulate,
  registerDoctor,
]

const examples = `
MODEL is a folder with config.json and *.safetensors, as Hugging Face's hub has them.

Examples:
  nanoweave demo                                          a story from the shipped model
  nanoweave generate MODEL --prompt "Once upon a time" --max-tokens 64
  nanoweave generate MODEL --chat "Hello!" --tp 2 --json
  nanoweave chat MODEL --temperature 0.7
  nanoweave serve MODEL --port 8000
  nanoweave bench serve --url http://127.0.0.1:8000 --rate 4 --duration 60
  nanoweave score MODEL --tokens 1,680,679 --json
  nanoweave inspect MODEL
  nanoweave plan --preset llama-3-70b --tp 8 --hardware h100 --tokens 8192 --html plan.html
  nanoweave doctor

Exit codes: 0 ok, 1 failed, 2 usage, 3 unsupported, 130 interrupted.`

function packageVersion(): string {
  const file = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return (JSON.parse(file) as { version: string }).version
}

function createProgram(interrupt: Interrupt): Command {
  const program = new Command('nanoweave')
    .description('Large language models on one or many GPUs, or the CPU.')
    .version(packageVersion())
    .addHelpText('after', examples)
    .showHelpAfterError('(nanoweave --help lists the commands and options)')
    // `bench serve` has options of its own, some named as those of `bench`.
    .enablePositionalOptions()
    .exitOverride()
  for (const register of commands) register(program, interrupt)
  for (const command of program.commands) explainUsage(command, command.name())
  return program
}

/** Usage errors of a command and of those below it end in its exit code, and say where help is. */
function explainUsage(command: Command, name: string): void {
  command.exitOverride().showHelpAfterError(`(nanoweave ${name} --help lists the options)`)
  for (const inner of command.commands) explainUsage(inner, `${name} ${inner.name()}`)
}

/** Says what went wrong on stderr; returns the exit code. `command`: the one that ran, if any. */
function report(error: unknown, interrupt: Interrupt, command: Command | undefined): number {
  if (interrupt.signal.aborted) return interrupt.exitCode()
  // Commander has already written its message; `--help` and `--version` come here with code 0.
  if (error instanceof CommanderError) return error.exitCode === EXIT_OK ? EXIT_OK : EXIT_USAGE
  if (error instanceof EngineError) {
    note(describeError(error, command))
    return exitCodeOf(error.code)
  }
  note(`nanoweave: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
  return EXIT_FAILED
}

async function main(): Promise<void> {
  const interrupt = listenForInterrupt()
  let running: Command | undefined
  try {
    const program = createProgram(interrupt).hook('preAction', (_, command) => {
      running = command
    })
    await program.parseAsync()
    if (interrupt.signal.aborted) process.exitCode = interrupt.exitCode()
  } catch (error) {
    process.exitCode = report(error, interrupt, running)
  }
  // The stream tells of a failed write one turn later.
  await setImmediate()
  const failure = interrupt.outputFailure()
  if (failure === undefined) return
  note(describeError(failure, running))
  process.exitCode = exitCodeOf(failure.code)
}

await main()
