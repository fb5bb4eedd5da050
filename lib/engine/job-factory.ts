/** JobFactory: checks requests and makes the jobs that run them, each with a sequence of its own. */

import { randomBytes } from 'node:crypto'
import { EngineError } from '../errors.ts'
import type { ProgramAccount } from '../scheduler/programs.ts'
import {
  createSequence,
  type ForkGroup,
  type Sequence,
  type SequenceKind,
  type SequenceOptions,
} from '../scheduler/sequence.ts'
import type { EngineParts } from './assemble.ts'
import {
  type Constraint,
  FORWARD_ROW_FLAGS,
  ForwardJob,
  GenerateJob,
  type GenerateSink,
  type PromptSink,
  SCORE_ROW_FLAGS,
  ScoreJob,
} from './jobs.ts'
import { GenerateOutput } from './output.ts'
import { derivedSeed, resolveSampling, type Sampling, samplingRowFlags } from './sampling.ts'
import type { GenerateRequest } from './types.ts'

const MAX_NAME_LENGTH = 1024
const MAX_PIN_MS = 3_600_000

/** What a sequence takes from the scheduler. */
export interface SequenceSources {
  /** Where the prefix chain of a salt starts. */
  readonly cacheRoot: (salt: string) => Int32Array
  readonly program: (name: string) => ProgramAccount
}

/** What is particular to one of several outputs of a prompt. */
export interface OutputOptions {
  /** From 0: its seed is derived from it. */
  readonly index: number
  readonly constraint?: Constraint | undefined
  /** Undefined: the only output. */
  readonly group?: ForkGroup | undefined
}

export class JobFactory {
  readonly #parts: EngineParts
  readonly #sources: SequenceSources
  #nextId = 1

  constructor(parts: EngineParts, sources: SequenceSources) {
    this.#parts = parts
    this.#sources = sources
  }

  /** ERR_USAGE for options out of range, ERR_TOKENIZER for stop strings without a tokenizer. */
  generate(
    request: GenerateRequest,
    tokens: readonly number[],
    arrivalMs: number,
    sink: GenerateSink,
    { index, constraint, group }: OutputOptions,
  ): GenerateJob {
    const { defaults, eosTokenIds, tokenizer, info } = this.#parts
    const { vocabSize, maxModelLen } = info
    const resolved = resolveSampling(request, {
      defaults,
      eosTokenIds,
      vocabSize,
      room: maxModelLen - tokens.length,
      randomSeed: () => randomBytes(8).readBigUInt64LE(),
    })
    const sampling = { ...resolved, seed: derivedSeed(resolved.seed, index) }
    if (sampling.stopStrings.length > 0 && tokenizer === undefined)
      throw new EngineError(
        'ERR_TOKENIZER',
        'stop strings need a tokenizer and the model folder has none; use stopTokenIds',
      )
    const skipSpecialTokens = request.skipSpecialTokens ?? true
    const detokenizer = tokenizer?.detokenizer({ skipSpecialTokens })
    const output = new GenerateOutput(sampling, detokenizer, skipSpecialTokens)
    const sequence = this.#generateSequence(request, tokens, arrivalMs, sampling, {
      isConstrained: constraint !== undefined,
      ...(group !== undefined && { group }),
    })
    return new GenerateJob(sequence, sampling, output, sink, constraint)
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
    more: Pick<SequenceOptions, 'isConstrained' | 'group'>,
  ): Sequence {
    const { cacheSalt = '', program, priority = 0, tpotTargetMs, pinTtlMs = 0 } = request
    requireName(cacheSalt, 'cacheSalt')
    if (program !== undefined) requireName(program, 'program')
    if (!Number.isFinite(priority)) throw new EngineError('ERR_USAGE', 'priority must be a number')
    if (tpotTargetMs !== undefined && !(Number.isFinite(tpotTargetMs) && tpotTargetMs > 0))
      throw new EngineError('ERR_USAGE', 'tpotTargetMs must be a number above 0')
    checkPinTtl(pinTtlMs)
    return createSequence({
      id: this.#nextId++,
      kind: 'generate',
      prompt,
      maxTokens: sampling.maxTokens,
      priority,
      ...(program !== undefined && { program: this.#sources.program(program) }),
      ...(tpotTargetMs !== undefined && { tpotTargetMs }),
      pinTtlMs,
      arrivalMs,
      cacheRoot: this.#sources.cacheRoot(cacheSalt),
      readsCache: true,
      rowFlags: samplingRowFlags(sampling),
      minLen: sampling.minTokens > 0 ? prompt.length + sampling.minTokens : 0,
      ...more,
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
      cacheRoot: this.#sources.cacheRoot(''),
      readsCache: false,
      rowFlags,
    })
  }
}

function requireName(value: string, field: string): void {
  if (typeof value !== 'string' || value.length > MAX_NAME_LENGTH)
    throw new EngineError('ERR_USAGE', `${field} must be at most ${MAX_NAME_LENGTH} characters`)
}

/** The time itself; ERR_USAGE out of range. */
export function checkPinTtl(ttlMs: number): number {
  if (typeof ttlMs === 'number' && ttlMs >= 0 && ttlMs <= MAX_PIN_MS) return ttlMs
  throw new EngineError('ERR_USAGE', `pinTtlMs must be a number from 0 to ${MAX_PIN_MS}`)
}
