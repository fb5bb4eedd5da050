/** A side in a process of its own, driven by requests; see protocol.ts. */

import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { EngineError } from '../../errors.ts'
import type { SideMessage, SideReplies, SideRequest } from './protocol.ts'

/** child.ts when run from sources, child.js when compiled. */
function childScript(): string {
  return fileURLToPath(import.meta.url).replace(/process\.(ts|js)$/, 'child.$1')
}

export class SideProcess {
  readonly name: string
  readonly #child: ChildProcess
  /** Set while a request is open; replies come in order, one at a time. */
  #settle: ((message: SideMessage) => void) | undefined

  constructor(name: 'nanoweave' | 'node-llama-cpp') {
    this.name = name
    this.#child = fork(childScript(), [name], {
      serialization: 'advanced',
      // What an engine prints must not mix with the report on stdout.
      stdio: ['ignore', 2, 2, 'ipc'],
    })
    this.#child.on('message', (message) => this.#finish(message as SideMessage))
    this.#child.on('exit', (status, signal) => {
      const how = signal === null ? `with status ${status}` : `by ${signal}`
      this.#finish({ ok: false, code: null, message: `the process ended ${how}` })
    })
    this.#child.on('error', (error) => {
      this.#finish({ ok: false, code: null, message: error.message })
    })
  }

  get pid(): number {
    return this.#child.pid ?? 0
  }

  #finish(message: SideMessage): void {
    this.#settle?.(message)
    this.#settle = undefined
  }

  async ask<Request extends SideRequest>(request: Request): Promise<SideReplies[Request['kind']]> {
    const message = await new Promise<SideMessage>((resolve) => {
      this.#settle = resolve
      this.#child.send(request, (error) => {
        if (error !== null) this.#finish({ ok: false, code: null, message: error.message })
      })
    })
    if (!message.ok) {
      const code = message.code === null ? '' : ` (${message.code})`
      throw new EngineError(
        'ERR_INTERNAL',
        `${this.name}: ${request.kind} failed: ${message.message}${code}`,
      )
    }
    return message.reply as SideReplies[Request['kind']]
  }

  /** Ends the process at once; an open request fails. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }

  /** Ends the process, politely first. Idempotent. */
  async close(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const exited = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()))
    const timer = setTimeout(() => this.kill(), 10_000)
    try {
      await this.ask({ kind: 'close' })
    } catch {
      this.kill()
    }
    await exited
    clearTimeout(timer)
  }
}
