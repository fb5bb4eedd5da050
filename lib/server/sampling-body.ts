/** Sampling fields of a body → the engine's options. What is null or absent stays absent. */

import type { GenerateRequest } from '../engine/types.ts'
import type { SamplingBody } from './schema/bodies.ts'

/** `T` without the fields that are undefined or null. */
export function given<T extends object>(
  fields: {
    readonly [K in keyof T]: T[K] | null | undefined
  },
): T {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== null),
  ) as T
}

export function samplingOptions(body: SamplingBody): GenerateRequest {
  return given<GenerateRequest>({
    maxTokens: body.max_tokens,
    minTokens: body.min_tokens,
    temperature: body.temperature,
    topP: body.top_p,
    // vLLM's clients say "off" with -1.
    topK: body.top_k === -1 ? 0 : body.top_k,
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias,
    seed: body.seed,
    stop: body.stop,
    stopTokenIds: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    priority: body.priority,
    deadlineMs: body.deadline_ms,
    cacheSalt: body.cache_salt,
    program: body.program,
    tpotTargetMs: body.tpot_target_ms,
    pinTtlMs: body.pin_ttl_ms,
  })
}
