/**
 * Jobs: what the step loop does for a sequence when a step that names it has run. A generate job
 * streams chunks; a prompt job collects the logits or log-probabilities of every prompt token.
 */

import type { EngineError } from '../errors.ts'
import type { Matcher } from '../grammar/types.ts'
import type { StepPlan } from '../scheduler/plan.ts'
import type { Sequence } from '../scheduler/sequence.ts'
import type { GenerateOutput } from './output.ts'
import { type Sampling, writeAllowedTokens, writeSlotState, writeStopsAllowed } from './sampling.ts'
import { ROW_FLAG, type SlotUpdates, type StepResult, topLogprobsOfRow } from './step.ts'
import type { FinishReason, GenerateChunk, Timings, TokenLogprob, Usage } from './types.ts'

export interface Job {
  readonly sequence: Sequence
  /** Called while entry `index` of `plan` is encoded: slot state that must come with the step. */
  encode(plan: StepPlan, index: number, updates: SlotUpdates): void
  /** The step has run, and the sequence had not ended. Returns why it ends now, if it does. */
  settle(plan: StepPlan, index: number, result: StepResult, nowMs: number): FinishReason | undefined
  /** Hands on what `settle` made; called once the next step is on its way. */
  deliver(): void
  /** It will not end well; called at most once, and never after `settle` gave a reason. */
  fail(error: EngineError): void
}

export interface GenerateSink {
  readonly push: (chunk: GenerateChunk) => void
  readonly fail: (error: EngineError) => void
}

/** What holds an output to a grammar. */
export interface Constraint {
  readonly matcher: Matcher
  /** The sequence may be planned again. */
  readonly onReleased: (sequence: Sequence) => void
}

export class GenerateJob implements Job {
  readonly sequence: Sequence
  readonly #sampling: Sampling
  readonly #output: GenerateOutput
  readonly #sink: GenerateSink
  readonly #constraint: Constraint | undefined
  readonly #queuedMs = performance.now()
  #firstTokenMs = 0
  #settled: GenerateChunk | undefined

  constructor(
    sequence: Sequence,
    sampling: Sampling,
    output: GenerateOutput,
    sink: GenerateSink,
    constraint?: Constraint,
  ) {
    this.sequence = sequence
    this.#sampling = sampling
    this.#output = output
    this.#sink = sink
    this.#constraint = constraint
  }

  encode(plan: StepPlan, index: number, updates: SlotUpdates): void {
    const { sequence } = this
    if (this.#constraint !== undefined && plan.samples[index] === 1)
      writeAllowedTokens(this.#constraint.matcher.mask, sequence.slot, updates)
    if (plan.isFirst[index] === 1) {
      const prompt = sequence.tokens.subarray(0, sequence.promptLen)
      writeSlotState(this.#sampling, sequence.slot, prompt, updates)
    }
    const contextLength = plan.starts[index] + plan.counts[index]
    if (
      sequence.minLen > sequence.promptLen &&
      contextLength === sequence.minLen &&
      this.#sampling.stopTokens.size > 0
    )
      writeStopsAllowed(this.#sampling, sequence.slot, updates)
  }

  settle(
    plan: StepPlan,
    index: number,
    result: StepResult,
    nowMs: number,
  ): FinishReason | undefined {
    if (plan.accepted[index] === 0) return undefined
    const row = plan.firstRows[index]
    if (this.#output.numTokens === 0) this.#firstTokenMs = nowMs
    const token = result.sampled[row]
    const chunk = this.#output.push(token, this.#logprob(result, row))
    const { finishReason } = chunk
    if (finishReason === undefined) {
      this.#constrain(token)
      this.#settled = chunk
    } else {
      this.#constraint?.matcher.close()
      this.#settled = { ...chunk, usage: this.#usage(), timings: this.#timings(nowMs) }
    }
    return finishReason
  }

  deliver(): void {
    const chunk = this.#settled
    this.#settled = undefined
    if (chunk !== undefined) this.#sink.push(chunk)
  }

  fail(error: EngineError): void {
    this.#constraint?.matcher.close()
    this.deliver()
    this.#sink.fail(error)
  }

  /** Held since the step was planned; released once it is known what may follow `token`. */
  #constrain(token: number): void {
    const { sequence } = this
    this.#constraint?.matcher.accept(token, () => this.#constraint?.onReleased(sequence))
  }

  #logprob(result: StepResult, row: number): TokenLogprob | undefined {
    if (!this.#sampling.wantsLogprobs) return undefined
    return {
      token: result.sampled[row],
      logprob: result.logprobs[row],
      top: this.#sampling.topLogprobs > 0 ? topLogprobsOfRow(result, row) : [],
    }
  }

  #usage(): Usage {
    return {
      promptTokens: this.sequence.promptLen,
      completionTokens: this.#output.numTokens,
      cachedTokens: this.sequence.numCachedTokens,
    }
  }

  #timings(nowMs: number): Timings {
    const { arrivalMs, firstPlannedMs, promptLen, numCachedTokens } = this.sequence
    const decodeMs = nowMs - this.#firstTokenMs
    const prefillMs = this.#firstTokenMs - firstPlannedMs
    const decoded = this.#output.numTokens - 1
    return {
      prepareMs: this.#queuedMs - arrivalMs,
      queueMs: firstPlannedMs - this.#queuedMs,
      ttftMs: this.#firstTokenMs - arrivalMs,
      totalMs: nowMs - arrivalMs,
      tokensPerSecond: decoded > 0 && decodeMs > 0 ? (1000 * decoded) / decodeMs : 0,
      promptTokensPerSecond: prefillMs > 0 ? (1000 * (promptLen - numCachedTokens)) / prefillMs : 0,
    }
  }
}

export interface PromptSink<T> {
  readonly resolve: (value: T) => void
  readonly fail: (error: EngineError) => void
}

/** Logits of every prompt token: [promptLen, vocabSize]. */
export class ForwardJob implements Job {
  readonly sequence: Sequence
  readonly #vocabSize: number
  readonly #logits: Float32Array
  readonly #sink: PromptSink<Float32Array>

  constructor(sequence: Sequence, vocabSize: number, sink: PromptSink<Float32Array>) {
    this.sequence = sequence
    this.#vocabSize = vocabSize
    this.#logits = new Float32Array(sequence.promptLen * vocabSize)
    this.#sink = sink
  }

  encode(): void {}
  deliver(): void {}

  settle(plan: StepPlan, index: number, result: StepResult): FinishReason | undefined {
    const firstRow = plan.firstRows[index]
    const target = new Int32Array(this.#logits.buffer)
    for (let at = 0; at < result.logits.length; at += 1 + this.#vocabSize) {
      const row = result.logits[at] - firstRow
      if (row < 0 || row >= plan.rowCounts[index]) continue
      const words = result.logits.subarray(at + 1, at + 1 + this.#vocabSize)
      target.set(words, (plan.starts[index] + row) * this.#vocabSize)
    }
    if (plan.starts[index] + plan.counts[index] < this.sequence.promptLen) return undefined
    this.#sink.resolve(this.#logits)
    return 'length'
  }

  fail(error: EngineError): void {
    this.#sink.fail(error)
  }
}

/** Log-probability of every prompt token but the first. */
export class ScoreJob implements Job {
  readonly sequence: Sequence
  readonly #logprobs: (number | null)[]
  readonly #sink: PromptSink<(number | null)[]>

  constructor(sequence: Sequence, sink: PromptSink<(number | null)[]>) {
    this.sequence = sequence
    this.#logprobs = new Array(sequence.promptLen).fill(null)
    this.#sink = sink
  }

  encode(): void {}
  deliver(): void {}

  settle(plan: StepPlan, index: number, result: StepResult): FinishReason | undefined {
    for (let row = 0; row < plan.rowCounts[index]; row++)
      this.#logprobs[plan.starts[index] + row + 1] = result.logprobs[plan.firstRows[index] + row]
    if (plan.starts[index] + plan.counts[index] < this.sequence.promptLen - 1) return undefined
    this.#sink.resolve(this.#logprobs)
    return 'length'
  }

  fail(error: EngineError): void {
    this.#sink.fail(error)
  }
}

/** Row flags of the jobs that do not sample. */
export const FORWARD_ROW_FLAGS = ROW_FLAG.logits
export const SCORE_ROW_FLAGS = ROW_FLAG.logprob
