/**
 * What the text of an answer is made of, and how a format of tool calls is read from it. A parser is
 * pure and incremental: the parts joined are the same however the text is cut into pushes.
 */

import type { Tokenizer } from '../../tokenizer/index.ts'

export type OutputPart =
  | { readonly kind: 'content'; readonly text: string }
  | { readonly kind: 'reasoning'; readonly text: string }
  /** A tool call begins; `arguments` parts after it are its arguments, JSON text. */
  | { readonly kind: 'call'; readonly name: string }
  | { readonly kind: 'arguments'; readonly text: string }

export interface OutputParser {
  push(text: string): OutputPart[]
  /** The output ends here. The parser is spent after it. */
  finish(): OutputPart[]
}

export interface ToolFormat {
  readonly name: string
  /** Texts that structure the output; where they are special tokens they must stay in the text. */
  readonly markers: readonly string[]
  /** The model was trained on this format, as its vocabulary shows. */
  readonly detect: (tokenizer: Tokenizer) => boolean
  /** `names`: the tools that the request offers. */
  readonly create: (names: ReadonlySet<string>) => OutputParser
}

/** `text` is one token of the vocabulary. */
export function isOneToken(tokenizer: Tokenizer, text: string): boolean {
  return tokenizer.encode(text).length === 1
}
