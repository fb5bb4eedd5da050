/** JobFactory: checks requests and makes the jobs that run them, each with a sequence of its own. */

import { randomBytes } from 'node:crypto'
import { EngineError } from '../errors.ts'
import { createSequence, type Sequence, type SequenceKind } from '../scheduler/sequence.ts'
import type { EngineParts } from './assemble.ts'
import {
  FORWARD_ROW_FLAGS,
  ForwardJob,
  GenerateJob,
  type GenerateSink,
  type PromptSink,
  SCORE_ROW_FLAGS,
  ScoreJob,
} from './jobs.ts'
import { GenerateOutput } from './output.ts'
import { resolveSampling, type Sampling, samplingRowFlags } from './sampling.ts'
import type { GenerateRequest } from './types.ts'

const MAX_SALT_LENGTH = 1024

export class JobFactory {
  readonly #parts: EngineParts
  readonly #cacheRoot: (salt: string) => Int32Array
  #nextId = 1

  /** `cacheRoot`: where the prefix chain of a salt starts. */
  constructor(parts: EngineParts, cacheRoot: (salt: string) => Int32Array) {
    this.#parts = parts
    this.#cacheRoot = cacheRoot
  }

  /** ERR_USAGE for options out of range, ERR_TOKENIZER for stop strings without a tokenizer. */
  generate(
    request: GenerateRequest,
    tokens: readonly number[],
    arrivalMs: number,
    sink: GenerateSink,
  ): GenerateJob {
    const { defaults, eosTokenIds, tokenizer, info } = this.#parts
    const { vocabSize, maxModelLen } = info
    const sampling = resolveSampling(request, {
      defaults,
      eosTokenIds,
      vocabSize,
      room: maxModelLen - tokens.length,
      randomSeed: () => randomBytes(8).readBigUInt64LE(),
    })
    if (sampling.stopStrings.length > 0 && tokenizer === undefined)
      throw new EngineError(
        'ERR_TOKENIZER',
        'stop strings need a tokenizer and the model folder has none; use stopTokenIds',
      )
    const skipSpecialTokens = request.skipSpecialTokens ?? true
    const detokenizer = tokenizer?.detokenizer({ skipSpecialTokens })
    const output = new GenerateOutput(sampling, detokenizer, skipSpecialTokens)
    const sequence = this.#generateSequence(request, tokens, arrivalMs, sampling)
    return new GenerateJob(sequence, sampling, output, sink)
  }

  forward(tokens: readonly number[], sink: PromptSink<Float32Array>): ForwardJob {
    const sequence = this.#promptSequence('forward', tokens, FORWARD_ROW_FLAGS)
    return new ForwardJob(sequence, this.#parts.info.vocabSize, sink)
  }

  score(tokens: readonly number[], sink: PromptSink<(number | null)[]>): ScoreJob {
    return new ScoreJob(this.#promptSequence('score', tokens, SCORE_ROW_FLAGS), sink)
  }

  #generateSequence(
    request: GenerateRequest,
    prompt: readonly number[],
    arrivalMs: number,
    sampling: Sampling,
  ): Sequence {
    const { cacheSalt = '', priority = 0 } = request
    if (typeof cacheSalt !== 'string' || cacheSalt.length > MAX_SALT_LENGTH)
      throw new EngineError('ERR_USAGE', `cacheSalt must be at most ${MAX_SALT_LENGTH} characters`)
    if (!Number.isFinite(priority)) throw new EngineError('ERR_USAGE', 'priority must be a number')
    return createSequence({
      id: this.#nextId++,
      kind: 'generate',
      prompt,
      maxTokens: sampling.maxTokens,
      priority,
      arrivalMs,
      cacheRoot: this.#cacheRoot(cacheSalt),
      readsCache: true,
      rowFlags: samplingRowFlags(sampling),
      minLen: sampling.minTokens > 0 ? prompt.length + sampling.minTokens : 0,
    })
  }

  /** Bypasses cached prefixes: their logits would not be computed. */
  #promptSequence(kind: SequenceKind, prompt: readonly number[], rowFlags: number): Sequence {
    return createSequence({
      id: this.#nextId++,
      kind,
      prompt,
      maxTokens: 0,
      arrivalMs: performance.now(),
      cacheRoot: this.#cacheRoot(''),
      readsCache: false,
      rowFlags,
    })
  }
}
