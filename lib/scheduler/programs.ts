/**
 * Programs: what the requests that belong together have been given so far, by the name their client
 * gives them. Bounded: the name used longest ago is forgotten, and starts anew when it comes back.
 */

import type { ProgramView } from './policy.ts'

export interface ProgramAccount extends ProgramView {
  attainedTokens: number
}

const MAX_PROGRAMS = 4096

export function createAccount(): ProgramAccount {
  return { attainedTokens: 0 }
}

export class Programs {
  /** Least recently used first. */
  readonly #accounts = new Map<string, ProgramAccount>()

  get(name: string): ProgramAccount {
    const account = this.#accounts.get(name) ?? createAccount()
    this.#accounts.delete(name)
    this.#accounts.set(name, account)
    if (this.#accounts.size > MAX_PROGRAMS) {
      const [oldest] = this.#accounts.keys()
      this.#accounts.delete(oldest)
    }
    return account
  }
}
