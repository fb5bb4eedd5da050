/**
 * Messages between the engine bench and its sides. Each engine runs in a process of its own, so
 * that its peak memory is its own, its threads rest while the other side runs, and a crash of a
 * peer is a message rather than the end of the bench. Both sides answer the same requests with the
 * same raw observations; everything derived from them is computed by the parent (timeline.ts).
 */

export interface LoadRequest {
  readonly kind: 'load'
  /** Checkpoint folder, or the .gguf file of a llama.cpp side. */
  readonly model: string
  /** `cpu`, `cuda` or `cuda:N`. */
  readonly device: string
  readonly threads: number
  /** Longest prompt plus output of one sequence, tokens. */
  readonly contextTokens: number
  /** Sequences that run at once. */
  readonly sequences: number
  /** Tokens of one step. */
  readonly batchTokens: number
  /** Bytes of KV cache for all sequences. */
  readonly kvBytes: number
  /** Further options of that side only. */
  readonly settings: Readonly<Record<string, string | number | boolean>>
}

/** Greedy generation for all prompts at once; prefixes are computed anew each time. */
export interface RunRequest {
  readonly kind: 'run'
  readonly prompts: readonly (readonly number[])[]
  readonly newTokens: number
}

/** Logits of every position, computed in one prefill. */
export interface LogitsRequest {
  readonly kind: 'logits'
  readonly tokens: readonly number[]
}

export type SideRequest =
  | LoadRequest
  | RunRequest
  | LogitsRequest
  | { readonly kind: 'memory' }
  | { readonly kind: 'close' }

/** What this side is: versions, instruction sets, settings in force. */
export interface LoadReply {
  readonly loadMs: number
  readonly about: Readonly<Record<string, unknown>>
}

export interface RunReply {
  /** [sequence][token] generated ids. */
  readonly tokens: readonly (readonly number[])[]
  /** [sequence][token] arrival, milliseconds since the request. */
  readonly timesMs: readonly (readonly number[])[]
}

export interface LogitsReply {
  readonly vocab: number
  /** [tokens, vocab], row-major. */
  readonly logits: Float32Array
}

export interface MemoryReply {
  /** Most memory resident at once since the process started, file mappings included. */
  readonly peakRssBytes: number
  readonly rssBytes: number
  /** Of which anonymous and of which mapped files; 0 where the system does not say. */
  readonly anonymousBytes: number
  readonly fileBytes: number
}

export interface SideReplies {
  readonly load: LoadReply
  readonly run: RunReply
  readonly logits: LogitsReply
  readonly memory: MemoryReply
  readonly close: null
}

export type SideMessage =
  | { readonly ok: true; readonly reply: SideReplies[SideRequest['kind']] }
  | { readonly ok: false; readonly code: string | null; readonly message: string }

/** One engine under test; methods are called one at a time. */
export interface Side {
  load(request: LoadRequest): Promise<LoadReply>
  run(request: RunRequest): Promise<RunReply>
  logits(request: LogitsRequest): Promise<LogitsReply>
  close(): Promise<void>
}
