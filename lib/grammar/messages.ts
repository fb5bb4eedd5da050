/** What pool-worker.ts and the threads that it starts say to each other. */

import type { Vocabulary } from './types.ts'

export interface WorkerData {
  readonly vocabulary: Vocabulary
  /** Columns of the logits. */
  readonly vocabSize: number
  /** Of WebAssembly. */
  readonly maxMemoryBytes: number
  /** Compiled grammars. */
  readonly maxCached: number
}

export type WorkerRequest =
  | { readonly type: 'prepare' }
  /** Writes a GrammarSource, given as JSON, as EBNF; `compile` takes what was written last. */
  | { readonly type: 'write'; readonly source: string }
  /** `visible`: special tokens that may stand in the text. */
  | { readonly type: 'compile'; readonly key: string; readonly visible: readonly string[] }
  | {
      readonly type: 'start'
      readonly id: number
      readonly key: string
      /** Of the mask. */
      readonly buffer: SharedArrayBuffer
    }
  | { readonly type: 'accept'; readonly tokens: readonly (readonly [id: number, token: number])[] }
  | { readonly type: 'close'; readonly id: number }

/** `ready`: the mask is that of the next token; `stuck`: none can come; others are mistakes. */
export type Answer = readonly [id: number, state: string]

export type WorkerMessage =
  | { readonly type: 'prepared' | 'written' }
  | { readonly type: 'compiled'; readonly keys: readonly string[] }
  | { readonly type: 'answers'; readonly answers: readonly Answer[] }
  /** The grammar cannot be written. */
  | { readonly type: 'refused'; readonly message: string; readonly param: string | undefined }
  /** The library failed: `said` before it did. */
  | { readonly type: 'failed'; readonly said: readonly string[]; readonly error: string }
