/**
 * Engine: the public face of nanoweave. It turns requests into jobs, hands them to the step loop, and
 * turns what the loop settles into streams and results. An engine that has failed or is closed
 * refuses every later call with the reason.
 */

import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { EngineError } from '../errors.ts'
import { loadBinding, toEngineError } from '../native/load.ts'
import type { SchedulerConfig } from '../scheduler/config.ts'
import { createEventRecorder, logConfig } from '../scheduler/event-log.ts'
import { Scheduler } from '../scheduler/scheduler.ts'
import type { Sequence } from '../scheduler/sequence.ts'
import type { Tokenizer } from '../tokenizer/index.ts'
import { assembleEngine, type EngineParts } from './assemble.ts'
import { Constraints } from './constraints.ts'
import { type ControlOptions, RequestControl } from './control.ts'
import { hashPlanWords } from './event-log.ts'
import { JobFactory } from './job-factory.ts'
import type { GenerateSink, Job, PromptSink } from './jobs.ts'
import { checkEngineOptions, checkGenerateRequest, checkScoreOptions } from './known-options.ts'
import { StepLoop } from './loop.ts'
import { checkTokens, promptTokens } from './prompt.ts'
import { StepEncoder } from './step.ts'
import { StepLog } from './step-log.ts'
import { ChunkStream } from './stream.ts'
import type {
  CloseOptions,
  EngineInfo,
  EngineOptions,
  EngineStats,
  Explanation,
  FinishReason,
  ForwardResult,
  GenerateRequest,
  GenerateResult,
  GenerateStream,
  ScoreOptions,
  ScoreResult,
  StepRecord,
  TokenLogprob,
} from './types.ts'

/** Ended requests that `explain` still knows. */
const MAX_REMEMBERED = 256
/** Largest result of `forward`, bytes. */
const MAX_FORWARD_BYTES = 2 ** 31
const MAX_DRAIN_MS = 2 ** 31 - 1

export class Engine implements AsyncDisposable {
  readonly info: EngineInfo
  readonly #parts: EngineParts
  readonly #scheduler: Scheduler
  readonly #jobs: JobFactory
  readonly #loop: StepLoop
  readonly #stepLog: StepLog
  readonly #constraints: Constraints
  readonly #controls = new Map<number, RequestControl>()
  readonly #ended = new Map<number, Explanation>()
  readonly #finished: Record<FinishReason, number> = { stop: 0, length: 0, abort: 0 }
  #promptTokens = 0
  #generatedTokens = 0
  #closing: Promise<void> | undefined

  /** Loads the model in `folder` (a path or a file URL); see EngineOptions. Rejects with an EngineError. */
  static async load(folder: string | URL, options: EngineOptions = {}): Promise<Engine> {
    checkEngineOptions(options)
    return new Engine(await assembleEngine(folderPath(folder), options, loadBinding()))
  }

  /** @internal Parts come from assembleEngine; use `load`. */
  constructor(parts: EngineParts) {
    const { sizes } = parts
    this.info = parts.info
    this.#parts = parts
    this.#scheduler = new Scheduler(schedulerConfig(parts))
    this.#jobs = new JobFactory(parts, {
      cacheRoot: (salt) => this.#scheduler.prefixCache.root(this.info.folder, salt),
      program: (name) => this.#scheduler.program(name),
    })
    this.#stepLog = new StepLog(parts.collectivePayload)
    this.#loop = new StepLoop({
      log: this.#stepLog,
      runtime: parts.runtime,
      programs: parts.programs,
      scheduler: this.#scheduler,
      encoder: new StepEncoder({
        blockSize: sizes.blockSize,
        numBuffers: parts.pipelineDepth + 1,
      }),
      depth: parts.pipelineDepth,
      clock: () => performance.now(),
      toError: toEngineError,
      onEnd: (job, reason) => this.#onEnd(job, reason),
    })
    this.#constraints = new Constraints(parts, (sequence) => {
      this.#scheduler.resume(sequence)
      this.#loop.wake()
    })
  }

  /** Undefined: the folder has no tokenizer.json, and requests need `tokens`. */
  get tokenizer(): Tokenizer | undefined {
    return this.#parts.tokenizer
  }

  /**
   * Starts what otherwise starts with the first request that needs it: the process that renders chat
   * templates and the thread that tokenizes long texts.
   */
  async warmUp(): Promise<void> {
    this.#requireOpen()
    await Promise.all([this.#parts.chatTemplate?.warmUp(), this.#parts.tokenizer?.warmUp()])
  }

  /**
   * Streams an output. Work begins with the first `next()`; leaving the loop cancels the request.
   * The iterator rejects with an EngineError: ERR_ABORTED, ERR_DEADLINE, ERR_QUEUE_FULL, …
   */
  generate(request: GenerateRequest): GenerateStream {
    let job: Job | undefined
    let control: RequestControl | undefined
    const leave = (error: EngineError) => {
      control?.disarm()
      if (job !== undefined) this.#loop.cancel(job, error)
    }
    const stream = new ChunkStream(
      () => {
        start().catch((error: unknown) => {
          const reason = this.#reasonOf(error)
          stream.fail(reason)
          leave(reason)
        })
      },
      () => leave(new EngineError('ERR_ABORTED', 'the consumer stopped reading')),
    )
    const sink: GenerateSink = {
      push: (chunk) => {
        stream.push(chunk)
        if (chunk.finishReason !== undefined) stream.end()
      },
      fail: (error) => stream.fail(error),
    }
    const start = async () => {
      const arrivalMs = performance.now()
      checkGenerateRequest(request)
      this.#requireOpen()
      control = new RequestControl(request, (error) => {
        stream.fail(error)
        leave(error)
      })
      control.throwIfStopped()
      const tokens = await promptTokens(request, this.#promptContext())
      control.throwIfStopped()
      const constraint = await this.#constraints.open(request, (error) => {
        stream.fail(error)
        leave(error)
      })
      if (stream.isEnded) {
        constraint?.matcher.close()
        return
      }
      let created: Job
      try {
        this.#requireOpen()
        created = this.#jobs.generate(request, tokens, arrivalMs, sink, constraint)
        this.#loop.add(created)
      } catch (error) {
        constraint?.matcher.close()
        throw error
      }
      job = created
      this.#controls.set(created.sequence.id, control)
      try {
        request.onQueued?.(created.sequence.id)
      } catch (error) {
        // The caller's own error goes back to the caller as it is.
        stream.fail(error)
        leave(new EngineError('ERR_ABORTED', 'onQueued threw', { cause: error }))
      }
    }
    return stream
  }

  /** Generates to the end. Rejects like `generate`. */
  async complete(request: GenerateRequest): Promise<GenerateResult> {
    let id = -1
    let text = ''
    const tokens: number[] = []
    const logprobs: TokenLogprob[] = []
    checkGenerateRequest(request)
    const onQueued = (queued: number) => {
      id = queued
      request.onQueued?.(queued)
    }
    for await (const chunk of this.generate({ ...request, onQueued })) {
      text += chunk.text
      for (const token of chunk.tokens) tokens.push(token)
      for (const logprob of chunk.logprobs ?? []) logprobs.push(logprob)
      const { finishReason, stopReason, usage, timings } = chunk
      if (finishReason === undefined || usage === undefined || timings === undefined) continue
      return {
        id,
        text,
        tokens,
        ...(chunk.logprobs !== undefined && { logprobs }),
        finishReason,
        ...(stopReason !== undefined && { stopReason }),
        usage,
        timings,
      }
    }
    throw new EngineError('ERR_INTERNAL', 'a stream ended without a reason')
  }

  /** The token ids that a request's prompt, messages or tokens become. */
  async tokenize(
    request: Pick<
      GenerateRequest,
      'prompt' | 'messages' | 'tokens' | 'tools' | 'chatTemplateKwargs'
    >,
  ): Promise<number[]> {
    this.#requireOpen()
    return [...(await promptTokens(request, this.#promptContext()))]
  }

  /** Logits of every token, [tokens, vocabulary]; needs no tokenizer. Does not read cached prefixes. */
  async forward(
    prompt: readonly number[] | Int32Array,
    options: ScoreOptions = {},
  ): Promise<ForwardResult> {
    const { vocabSize } = this.info
    checkScoreOptions(options)
    const tokens = checkTokens(prompt, vocabSize)
    if (4 * tokens.length * vocabSize > MAX_FORWARD_BYTES)
      throw new EngineError(
        'ERR_USAGE',
        `the logits of ${tokens.length} tokens exceed ${MAX_FORWARD_BYTES} bytes; pass fewer, or use score`,
      )
    const logits = await this.#runPrompt<Float32Array>(options, (sink) =>
      this.#jobs.forward(tokens, sink),
    )
    return { logits, shape: [tokens.length, vocabSize] }
  }

  /** Log-probability of every token given those before it. Does not read cached prefixes. */
  async score(
    prompt: readonly number[] | Int32Array,
    options: ScoreOptions = {},
  ): Promise<ScoreResult> {
    checkScoreOptions(options)
    const tokens = checkTokens(prompt, this.info.vocabSize)
    this.#requireOpen()
    if (tokens.length === 1) return { logprobs: [null] }
    const logprobs = await this.#runPrompt<(number | null)[]>(options, (sink) =>
      this.#jobs.score(tokens, sink),
    )
    return { logprobs }
  }

  /** What was decided about a request and why; undefined when it is not known (any more). */
  explain(id: number): Explanation | undefined {
    const job = this.#loop.job(id)
    return job === undefined ? this.#ended.get(id) : this.#explain(job.sequence)
  }

  /** The last steps that have ended, at most 128, oldest first. */
  recentSteps(): StepRecord[] {
    return this.#stepLog.recent()
  }

  stats(): EngineStats {
    const { blocks } = this.#scheduler
    const { running, waiting, ...counters } = this.#scheduler.stats()
    const { failure } = this.#loop
    return {
      running,
      waiting,
      kvBlocks: {
        total: blocks.numBlocks,
        free: blocks.numFree,
        cached: blocks.numCached,
        used: blocks.numUsed,
        pinned: counters.pinnedBlocks,
      },
      hostBlocks: {
        total: this.#parts.sizes.numHostBlocks,
        used: counters.hostBlocksUsed,
      },
      steps: this.#loop.numSteps,
      stepsInFlight: this.#loop.stepsInFlight,
      stepRunMs: this.#stepLog.runMs,
      stepQueueMs: this.#stepLog.queueMs,
      collectiveBytes: this.#stepLog.collectiveBytes,
      promptTokens: this.#promptTokens,
      generatedTokens: this.#generatedTokens,
      droppedTokens: counters.droppedTokens,
      prefixQueries: counters.prefixQueries,
      prefixHits: counters.prefixHits,
      preemptions: counters.preemptions,
      swapsOut: counters.swapsOut,
      swapsIn: counters.swapsIn,
      finished: { ...this.#finished },
      ...(failure !== undefined && { failed: failure.code }),
    }
  }

  /**
   * Refuses new requests, lets pending ones finish for up to `drainMs`, fails the rest with
   * ERR_CLOSED, waits for steps in flight and frees everything. Later calls return the same promise.
   */
  close(options: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#shutDown(Math.min(MAX_DRAIN_MS, Math.max(0, options.drainMs ?? 0)))
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #shutDown(drainMs: number): Promise<void> {
    if (drainMs > 0) await settleWithin(this.#loop.idle(), drainMs)
    this.#loop.cancelAll(closedError())
    await this.#loop.settled()
    const results = await Promise.allSettled([
      this.#parts.runtime.close(),
      this.#parts.chatTemplate?.close(),
      this.#parts.tokenizer?.close(),
      this.#parts.eventLog?.close(),
      this.#constraints.close(),
    ])
    for (const result of results)
      if (result.status === 'rejected') throw toEngineError(result.reason)
  }

  #requireOpen(): void {
    if (this.#loop.failure !== undefined) throw this.#loop.failure
    if (this.#closing !== undefined) throw closedError()
  }

  /** While closing, whatever goes wrong goes wrong because of it. */
  #reasonOf(error: unknown): EngineError {
    return this.#closing !== undefined && this.#loop.failure === undefined
      ? closedError()
      : toEngineError(error)
  }

  #promptContext() {
    const { tokenizer, chatTemplate } = this.#parts
    const { vocabSize, maxModelLen } = this.info
    return { tokenizer, chatTemplate, vocabSize, maxModelLen }
  }

  /** Runs a job that gives one value. */
  #runPrompt<T>(options: ControlOptions, create: (sink: PromptSink<T>) => Job): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#requireOpen()
      let job: Job | undefined
      const control = new RequestControl(options, (error) => {
        if (job !== undefined) this.#loop.cancel(job, error)
      })
      try {
        control.throwIfStopped()
        job = create({ resolve, fail: reject })
        this.#loop.add(job)
        this.#controls.set(job.sequence.id, control)
      } catch (error) {
        control.disarm()
        throw error
      }
    })
  }

  #onEnd(job: Job, reason: FinishReason): void {
    const { sequence } = job
    this.#controls.get(sequence.id)?.disarm()
    this.#controls.delete(sequence.id)
    this.#finished[reason]++
    if (sequence.firstPlannedMs >= 0) this.#promptTokens += sequence.promptLen
    this.#generatedTokens += sequence.numConfirmed - sequence.promptLen
    this.#ended.set(sequence.id, this.#explain(sequence))
    if (this.#ended.size > MAX_REMEMBERED) {
      const [oldest] = this.#ended.keys()
      this.#ended.delete(oldest)
    }
  }

  #explain(sequence: Sequence): Explanation {
    const queuePosition = this.#scheduler.queuePosition(sequence)
    return {
      id: sequence.id,
      state: sequence.state,
      ...(queuePosition >= 0 && { queuePosition }),
      promptTokens: sequence.promptLen,
      computedTokens: sequence.numComputed,
      generatedTokens: sequence.numConfirmed - sequence.promptLen,
      kvBlocks: sequence.numBlocks,
      preemptions: sequence.numPreemptions,
      decisions: sequence.decisions.map((decision) => ({ ...decision })),
    }
  }
}

function schedulerConfig(parts: EngineParts): SchedulerConfig {
  const { sizes, eventLog } = parts
  const config: SchedulerConfig = {
    maxNumSeqs: sizes.maxNumSeqs,
    maxNumBatchedTokens: sizes.maxNumBatchedTokens,
    maxRows: sizes.maxRows,
    maxModelLen: sizes.maxModelLen,
    numBlocks: sizes.numBlocks,
    blockSize: sizes.blockSize,
    numSlots: sizes.numSlots,
    maxWaiting: sizes.maxWaiting,
    numHostBlocks: sizes.numHostBlocks,
    costPrior: parts.costPrior,
    prefixCache: parts.prefixCache,
    policy: parts.policy,
    ...(parts.tpotTargetMs !== undefined && { tpotTargetMs: parts.tpotTargetMs }),
    ...(parts.starvationMs !== undefined && { starvationMs: parts.starvationMs }),
    cacheKey: new Int32Array(new Uint8Array(randomBytes(16)).buffer),
  }
  if (eventLog === undefined) return config
  eventLog.write(logConfig(config))
  const observer = createEventRecorder(hashPlanWords, (event) => eventLog.write(event))
  return { ...config, observer }
}

function closedError(): EngineError {
  return new EngineError('ERR_CLOSED', 'the engine is closed')
}

/** Waits for `promise`, but no longer than `ms`. */
async function settleWithin(promise: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms)
  })
  await Promise.race([promise, timeout])
  clearTimeout(timer)
}

function folderPath(folder: string | URL): string {
  if (typeof folder === 'string' && folder !== '' && !folder.startsWith('file:')) return folder
  try {
    if (typeof folder === 'string' || folder instanceof URL) return fileURLToPath(folder)
  } catch (error) {
    throw new EngineError('ERR_USAGE', `${folder} is no path and no file URL`, { cause: error })
  }
  throw new EngineError('ERR_USAGE', 'give the model folder as a path or a file URL')
}
