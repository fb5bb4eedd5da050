/**
 * What the rest of nanoweave sees of text: a tokenizer, a streaming detokenizer and a chat
 * template. Implemented in tokenizer.ts, decoder.ts and chat-template.ts.
 */

export interface EncodeOptions {
  /** Add what the model puts around raw text: the beginning-of-sequence token. Default false. */
  readonly addBos?: boolean
}

export interface DecodeOptions {
  /** Leave special tokens out. Default true. */
  readonly skipSpecialTokens?: boolean
}

export interface TokenVocabulary {
  /** How pieces spell bytes: GPT-2's characters, `<0x0A>` and `▁`, or as they are. */
  readonly kind: 'byte_level' | 'byte_fallback' | 'raw'
  /** By token id; '' where there is none. */
  readonly pieces: readonly string[]
  /** Ids of special tokens. */
  readonly special: readonly number[]
}

export interface Tokenizer {
  /** Token ids of `text`; special tokens written out in it become their ids. */
  encode(text: string, options?: EncodeOptions): number[]
  /** The same, without holding up the event loop for long: long texts go to another thread. */
  encodeInBackground(text: string, options?: EncodeOptions): Promise<number[]>
  /** Starts that thread, which otherwise starts with the first long text. */
  warmUp(): Promise<void>
  /** Ends that thread, if it was started. */
  close(): Promise<void>
  /** Text of `ids`; ids that no token has are left out, as in the reference implementation. */
  decode(ids: readonly number[], options?: DecodeOptions): string
  /** Largest token id + 1. A model's logits may be wider (padding). */
  readonly vocabSize: number
  isSpecial(id: number): boolean
  /** What every token spells. */
  readonly vocabulary: TokenVocabulary
  detokenizer(options?: DecodeOptions): Detokenizer
}

/**
 * Decodes a sequence as it grows. The pushes and the finish joined are exactly `decode` of all
 * ids, however they are grouped.
 */
export interface Detokenizer {
  /** The text that became certain: complete code points only, possibly none. */
  push(ids: readonly number[]): string
  /** What was held back. The detokenizer is spent after it. */
  finish(): string
}

export interface ChatMessage {
  readonly role: string
  readonly content?: string | null | readonly unknown[]
  readonly [key: string]: unknown
}

export interface RenderOptions {
  /** Tool definitions, as the template expects them (OpenAI's function objects). */
  readonly tools?: readonly unknown[]
  /** End with the header of an assistant message. Default true. */
  readonly addGenerationPrompt?: boolean
  /** Further variables of the template. */
  readonly kwargs?: Readonly<Record<string, unknown>>
}

export interface ChatTemplate {
  render(messages: readonly ChatMessage[], options?: RenderOptions): Promise<string>
  /** Starts the renderer's process, which otherwise starts with the first render. */
  warmUp(): Promise<void>
  /** Ends the renderer's process, if one was started. */
  close(): Promise<void>
}
