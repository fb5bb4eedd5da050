/**
 * The one error type of nanoweave and its codes. The same list stands in native/core/error.h
 * (test/errors.test.ts compares them). Callers branch on `code`; messages say what happened,
 * why, and what to do next, and may change.
 */

export const ERROR_CODES = [
  'ERR_USAGE', // arguments or options that cannot mean anything
  'ERR_IO', // a file could not be opened, read or mapped
  'ERR_MODEL_NOT_FOUND', // no model folder, or a file it must have is missing
  'ERR_MODEL_CONFIG', // config.json is malformed or contradicts itself
  'ERR_UNSUPPORTED_MODEL', // a real architecture or feature this version does not run
  'ERR_UNSUPPORTED_LAYOUT', // the parallel layout does not fit the model
  'ERR_UNSUPPORTED_OPTION', // an option the chosen backend does not have
  'ERR_SAFETENSORS', // malformed, truncated or hostile weights file
  'ERR_TENSOR_MISSING', // the checkpoint lacks a tensor the architecture needs
  'ERR_TENSOR_SHAPE', // a tensor has another shape or dtype than the config says
  'ERR_TOKENIZER', // tokenizer missing or unreadable
  'ERR_TEMPLATE', // chat template failed, or ran past its limits
  'ERR_NO_BINARY', // no native addon for this platform
  'ERR_NO_DEVICE', // the device asked for is not there
  'ERR_OUT_OF_MEMORY', // weights, KV cache or arena do not fit
  'ERR_PROGRAM', // a program failed validation
  'ERR_STEP', // a step failed validation
  'ERR_RANK_TIMEOUT', // a rank waited past its deadline for a peer
  'ERR_RANK_FAULT', // a rank failed while it ran an op
  'ERR_KV_EXHAUSTED', // the KV cache can never hold this request
  'ERR_CONTEXT_LENGTH', // prompt and max tokens exceed the model's context
  'ERR_QUEUE_FULL', // the waiting queue is at its limit
  'ERR_DEADLINE', // the request's deadline passed
  'ERR_ABORTED', // cancelled by its AbortSignal
  'ERR_CLOSED', // the engine or runtime is closed
  'ERR_INTERNAL', // a bug in nanoweave
] as const

export type ErrorCode = (typeof ERROR_CODES)[number]

/** Where in a run a failure happened; absent where it does not apply. */
export interface ErrorDetails {
  /** The rank that failed; with ERR_RANK_TIMEOUT the one that did not arrive. */
  readonly rank?: number
  /** Label of the op, as `nanoweave plan` prints it. */
  readonly op?: string
  readonly step?: number
  /** The part of a request that is wrong, as its sender calls it. */
  readonly param?: string
  readonly cause?: unknown
}

export class EngineError extends Error {
  readonly code: ErrorCode
  readonly rank?: number
  readonly op?: string
  readonly step?: number
  readonly param?: string

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.name = 'EngineError'
    this.code = code
    if (details.rank !== undefined) this.rank = details.rank
    if (details.op !== undefined) this.op = details.op
    if (details.step !== undefined) this.step = details.step
    if (details.param !== undefined) this.param = details.param
  }
}

/** What Node's codes mean for whoever gave a path, and what to do. */
const SYSTEM_REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'it, or a folder on its path, does not exist; check the spelling and the current folder',
  ENOTDIR: 'a part of its path is a file, not a folder; check the path',
  EISDIR: 'it is a folder; give the path of a file',
  EACCES: 'this user may not; change its permissions, or choose another place',
  EPERM: 'this user may not; change its permissions, or choose another place',
  EROFS: 'the file system is read-only; choose another place',
  ENOSPC: 'the disk is full; make room, or choose another place',
  ENAMETOOLONG: 'the path is too long; shorten it',
}

/** Why a file could not be opened, read or written, in words. */
export function systemReason(cause: unknown): string {
  const { code, message } = cause as NodeJS.ErrnoException
  return SYSTEM_REASONS[code ?? ''] ?? message
}
