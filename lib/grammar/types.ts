/** What the pool of grammar workers needs to know, and what it gives. */

/** Texts of a vocabulary's tokens, as xgrammar reads them. */
export interface Vocabulary {
  /** How pieces spell bytes: GPT-2's characters, `<0x0A>` and `▁`, or as they are. */
  readonly kind: 'byte_level' | 'byte_fallback' | 'raw'
  /** By token id; '' where there is none. */
  readonly pieces: readonly string[]
  readonly special: readonly number[]
  /** End a text that is complete. */
  readonly stopTokens: readonly number[]
}

/** Follows one output through its grammar. */
export interface Matcher {
  /** [ceil(vocabSize / 32)] a bit per token that may come next. Stays as it is until `accept`. */
  readonly mask: Int32Array
  /** The output grew by a token; `onReady` once the mask is that of the next one. */
  accept(token: number, onReady: () => void): void
  /** Nothing is called after this. */
  close(): void
}
