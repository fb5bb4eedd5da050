/**
 * What the text of an answer is made of, and how a format of tool calls is read from it. A parser is
 * pure and incremental: the parts joined are the same however the text is cut into pushes.
 */

import type { ChatMessage } from '../../engine/types.ts'
import type { GrammarBuilder } from '../../grammar/index.ts'
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

/** A tool that a grammar lets the model call. */
export interface OfferedCall {
  readonly name: string
  /** JSON schema of its arguments; undefined: any object. */
  readonly parameters?: unknown
  /** Where the schema stands in the request. */
  readonly param?: string
}

export interface CallRules {
  readonly calls: readonly OfferedCall[]
  /** More than one call may be made. */
  readonly isParallel: boolean
  /** What may stand in place of calls: an expression of the grammar, or any text. */
  readonly otherwise?: { readonly expression: string } | 'text'
}

export interface ToolFormat {
  readonly name: string
  /** Answers are in the format even when no tool is offered. */
  readonly isAlwaysUsed?: boolean
  /** Adds the rules of calls, or of what may stand in their place; returns the root's expression. */
  readonly addRules: (builder: GrammarBuilder, rules: CallRules) => string
  /** An answer without a call, as the format writes it. */
  readonly addAnswer?: (builder: GrammarBuilder, expression: string) => string
  /** A message as the templates of its models want it, where they differ from all others. */
  readonly templateMessage?: (message: ChatMessage) => ChatMessage
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
