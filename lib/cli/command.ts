/** What a command is: a file in commands/ that declares itself, and a line in main.ts. */

import type { Command } from 'commander'
import type { Interrupt } from './interrupt.ts'

/** Adds the command to `program`. Its action throws EngineError, and resolves when all is written. */
export type RegisterCommand = (program: Command, interrupt: Interrupt) => void
