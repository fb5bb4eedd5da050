/** Constraints: opens the grammars of requests. Its worker threads start with the first of them. */

import { EngineError } from '../errors.ts'
import { type Grammar, readGrammar } from '../grammar/grammar.ts'
import { GrammarPool } from '../grammar/pool.ts'
import type { Sequence } from '../scheduler/sequence.ts'
import type { EngineParts } from './assemble.ts'
import type { Constraint } from './jobs.ts'
import type { GenerateRequest } from './types.ts'

export class Constraints {
  readonly #parts: Pick<EngineParts, 'tokenizer' | 'eosTokenIds' | 'info'>
  readonly #onReleased: (sequence: Sequence) => void
  #pool: GrammarPool | undefined
  #isClosed = false

  /** `onReleased`: it is known what may follow; the sequence may be planned again. */
  constructor(
    parts: Pick<EngineParts, 'tokenizer' | 'eosTokenIds' | 'info'>,
    onReleased: (sequence: Sequence) => void,
  ) {
    this.#parts = parts
    this.#onReleased = onReleased
  }

  /** The request's grammar; undefined without one. ERR_USAGE where its form or other options rule it out. */
  read({ grammar, minTokens, ignoreEos }: GenerateRequest): Grammar | undefined {
    if (grammar === undefined) return undefined
    if ((minTokens ?? 0) > 0) throw contradiction('minTokens')
    if (ignoreEos === true) throw contradiction('ignoreEos')
    return readGrammar(grammar)
  }

  /**
   * What holds an output to its grammar. ERR_USAGE for one that cannot be used. `onError`: the output
   * cannot be held to it any further. `signal`: nobody wants it any more; it stops waiting in line.
   */
  async open(
    grammar: Grammar,
    onError: (error: EngineError) => void,
    signal: AbortSignal,
  ): Promise<Constraint> {
    const matcher = await this.#openPool().open(grammar, onError, signal)
    return { matcher, onReleased: this.#onReleased }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    await this.#pool?.close()
  }

  #openPool(): GrammarPool {
    if (this.#isClosed) throw new EngineError('ERR_CLOSED', 'the engine is closed')
    const { tokenizer, eosTokenIds, info } = this.#parts
    if (tokenizer === undefined)
      throw new EngineError(
        'ERR_TOKENIZER',
        'a grammar needs a tokenizer and the model folder has none',
      )
    if (eosTokenIds.length === 0)
      throw new EngineError(
        'ERR_USAGE',
        'a grammar needs an end-of-sequence token and the model names none',
      )
    this.#pool ??= new GrammarPool({
      vocabulary: { ...tokenizer.vocabulary, stopTokens: eosTokenIds },
      vocabSize: info.vocabSize,
    })
    return this.#pool
  }
}

function contradiction(option: string): EngineError {
  return new EngineError(
    'ERR_USAGE',
    `${option} contradicts grammar: the output ends where it does`,
  )
}
