/** What every route sees: the engine, the model's name and abilities, limits and metrics. */

import { ApiError, badRequest, engineFailed } from './api-error.ts'
import type { WriteBatch } from './event-stream.ts'
import type { Metrics } from './metrics.ts'
import type { ToolFormat } from './tools/index.ts'
import type { StartSpan } from './tracing.ts'
import { MAX_CHARACTERS_PER_TOKEN, type ServedEngine, type ServerLimits } from './types.ts'

export interface ServerContext {
  readonly engine: ServedEngine
  readonly modelName: string
  readonly version: string
  /** Seconds since 1970. */
  readonly startedAt: number
  readonly limits: ServerLimits
  readonly metrics: Metrics
  readonly startSpan: StartSpan
  /** Of all event streams. */
  readonly writes: WriteBatch
  /** Undefined: tools are refused. */
  readonly toolFormat: ToolFormat | undefined
  readonly splitsReasoning: boolean
  /** Of turns that call tools; 0: they are kept like any other. */
  readonly toolPinTtlMs: number
  readonly isDraining: () => boolean
}

export function requireModel(context: ServerContext, model: string | null | undefined): void {
  if (model === undefined || model === null || model === context.modelName) return
  throw new ApiError(
    404,
    'model_not_found',
    `the model '${model}' does not exist here; this server has '${context.modelName}'`,
    { param: 'model' },
  )
}

export function requireEngine(context: ServerContext): void {
  const { failed } = context.engine.stats()
  if (failed !== undefined) throw engineFailed(failed)
}

/** Refuses texts that cannot fit before any time is spent on them. */
export function requireFits(context: ServerContext, numCharacters: number, param: string): void {
  const { maxModelLen } = context.engine.info
  if (numCharacters <= maxModelLen * MAX_CHARACTERS_PER_TOKEN) return
  throw badRequest(
    'context_length_exceeded',
    `${numCharacters} characters cannot fit the context of ${maxModelLen} tokens`,
    param,
  )
}
