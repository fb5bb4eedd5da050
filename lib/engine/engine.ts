/**
 * Engine: the public face of nanoweave. It turns requests into jobs, hands them to the step loop, and
 * turns what the loop settles into streams and results. An engine that has failed or is closed
 * refuses every later call with the reason.
 */

import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { EngineError } from '../errors.ts'
import { loadBinding, toEngineError } from '../native/load.ts'
import type { ExpertTrace } from '../parallel/balance/trace.ts'
import type { SchedulerConfig } from '../scheduler/config.ts'
import { createEventRecorder, logConfig } from '../scheduler/event-log.ts'
import { type GroupStats, SchedulerGroups } from '../scheduler/groups.ts'
import type { Sequence } from '../scheduler/sequence.ts'
import type { Tokenizer } from '../tokenizer/index.ts'
import { assembleEngine, type EngineParts } from './assemble.ts'
import { Constraints } from './constraints.ts'
import { type ControlOptions, RequestControl } from './control.ts'
import { hashPlanWords } from './event-log.ts'
import type { ExpertSteps } from './expert-steps.ts'
import {
  collectOutput,
  Generation,
  type GenerationContext,
  openGeneration,
  totalUsage,
} from './generation.ts'
import { checkPinTtl, JobFactory } from './job-factory.ts'
import type { Job, PromptSink } from './jobs.ts'
import {
  checkEngineOptions,
  checkGenerateManyRequest,
  checkGenerateRequest,
  checkScoreOptions,
} from './known-options.ts'
import { StepLoop } from './loop.ts'
import { checkTokens, promptTokens } from './prompt.ts'
import { StepEncoder } from './step.ts'
import { StepLog } from './step-log.ts'
import type {
  CloseOptions,
  CompleteManyResult,
  EngineInfo,
  EngineOptions,
  EngineStats,
  Explanation,
  FinishReason,
  ForwardResult,
  GenerateHandler,
  GenerateManyRequest,
  GenerateRequest,
  GenerateResult,
  GenerateStream,
  ScoreOptions,
  ScoreResult,
  StepRecord,
} from './types.ts'

/** Ended requests that `explain` still knows. */
const MAX_REMEMBERED = 256
/** Largest result of `forward`, bytes. */
const MAX_FORWARD_BYTES = 2 ** 31
const MAX_DRAIN_MS = 2 ** 31 - 1

export class Engine implements AsyncDisposable {
  readonly info: EngineInfo
  readonly #parts: EngineParts
  readonly #scheduler: SchedulerGroups
  readonly #jobs: JobFactory
  readonly #loop: StepLoop
  readonly #stepLog: StepLog
  readonly #constraints: Constraints
  readonly #generation: GenerationContext
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
    this.#scheduler = new SchedulerGroups(schedulerConfig(parts), parts.info.attentionGroups)
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
      experts: parts.experts,
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
    this.#generation = {
      jobs: this.#jobs,
      loop: this.#loop,
      constraints: this.#constraints,
      requireOpen: () => this.#requireOpen(),
      promptTokens: (request) => promptTokens(request, this.#promptContext()),
      reasonOf: (error) => this.#reasonOf(error),
    }
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
    const check = () => checkGenerateRequest(request)
    return openGeneration(request, 1, this.#generation, check)[0]
  }

  /**
   * Streams `n` outputs of one prompt, which is computed once. All are queued with the first read of
   * any stream; leaving one cancels that output only. Throws ERR_USAGE for unknown names or `n`.
   */
  generateMany(request: GenerateManyRequest): GenerateStream[] {
    checkGenerateManyRequest(request)
    return openGeneration(request, request.n, this.#generation)
  }

  /**
   * Like `generateMany` for a caller with many requests, which is told of chunks instead of asking for
   * each: work begins at once, and `signal` ends it. Throws like `generateMany`.
   */
  dispatch(request: GenerateManyRequest, handler: GenerateHandler): void {
    checkGenerateManyRequest(request)
    for (const method of ['onChunk', 'onError'] as const) {
      if (typeof handler?.[method] === 'function') continue
      throw new EngineError(
        'ERR_USAGE',
        `dispatch takes a handler with onChunk and onError; ${method} is no function`,
      )
    }
    new Generation(request, request.n, this.#generation, handler).start()
  }

  /** Generates to the end. Rejects like `generate`. */
  async complete(request: GenerateRequest): Promise<GenerateResult> {
    checkGenerateRequest(request)
    return (await this.completeMany({ ...request, n: 1 })).choices[0]
  }

  /** Generates `n` outputs of one prompt to their ends. Rejects with the first failure. */
  async completeMany(request: GenerateManyRequest): Promise<CompleteManyResult> {
    const ids: number[] = []
    const onQueued = (id: number, index: number) => {
      ids[index] = id
      request.onQueued?.(id, index)
    }
    checkGenerateManyRequest(request)
    const streams = this.generateMany({ ...request, onQueued })
    try {
      const outputs = await Promise.all(streams.map(collectOutput))
      return {
        choices: outputs.map((output, index) => ({ id: ids[index], ...output })),
        usage: totalUsage(outputs.map(({ usage }) => usage)),
      }
    } finally {
      for (const stream of streams) void stream.return()
    }
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

  /**
   * Sets `pinTtlMs` of a request that runs, by its id (`onQueued`): a tool is being called. False where it
   * has ended. ERR_USAGE for times out of range.
   */
  pin(id: number, ttlMs: number): boolean {
    const job = this.#loop.job(id)
    if (job === undefined) return false
    this.#scheduler.pin(job.sequence, checkPinTtl(ttlMs))
    return true
  }

  /** What was decided about a request and why; undefined when it is not known (any more). */
  explain(id: number): Explanation | undefined {
    const job = this.#loop.job(id)
    return job === undefined ? this.#ended.get(id) : this.#explain(job.sequence)
  }

  /**
   * Keeps which experts tokens choose from the next step on, up to 65,536 tokens; `stopExpertTrace`
   * gives them. ERR_USAGE unless the engine counts its experts (`expertBalance`).
   */
  startExpertTrace(): void {
    this.#requireOpen()
    this.#requireExperts().startTrace()
  }

  stopExpertTrace(): ExpertTrace {
    return this.#requireExperts().stopTrace()
  }

  /** The last steps that have ended, at most 128, oldest first. */
  recentSteps(): StepRecord[] {
    return this.#stepLog.recent()
  }

  stats(): EngineStats {
    const groups = this.#scheduler.stats()
    const sum = (read: (group: GroupStats) => number) =>
      groups.reduce((total, group) => total + read(group), 0)
    const { failure } = this.#loop
    return {
      running: sum(({ running }) => running),
      waiting: sum(({ waiting }) => waiting),
      kvBlocks: {
        total: sum(({ blocks }) => blocks.total),
        free: sum(({ blocks }) => blocks.free),
        cached: sum(({ blocks }) => blocks.cached),
        used: sum(({ blocks }) => blocks.used),
        pinned: sum(({ pinnedBlocks }) => pinnedBlocks),
      },
      hostBlocks: {
        total: this.#parts.sizes.numHostBlocks * groups.length,
        used: sum(({ hostBlocksUsed }) => hostBlocksUsed),
      },
      groups: groups.map(({ running, waiting, preemptions, blocks }) => ({
        running,
        waiting,
        preemptions,
        kvBlocks: blocks,
      })),
      steps: this.#loop.numSteps,
      stepsInFlight: this.#loop.stepsInFlight,
      stepRunMs: this.#stepLog.runMs,
      stepQueueMs: this.#stepLog.queueMs,
      collectiveBytes: this.#stepLog.collectiveBytes,
      promptTokens: this.#promptTokens,
      generatedTokens: this.#generatedTokens,
      droppedTokens: sum(({ droppedTokens }) => droppedTokens),
      prefixQueries: sum(({ prefixQueries }) => prefixQueries),
      prefixHits: sum(({ prefixHits }) => prefixHits),
      preemptions: sum(({ preemptions }) => preemptions),
      swapsOut: sum(({ swapsOut }) => swapsOut),
      swapsIn: sum(({ swapsIn }) => swapsIn),
      finished: { ...this.#finished },
      ...(this.#parts.experts && { experts: this.#parts.experts.loads() }),
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

  #requireExperts(): ExpertSteps {
    const { experts } = this.#parts
    if (experts !== undefined) return experts
    throw new EngineError('ERR_USAGE', "choices are not counted; load with expertBalance: 'count'")
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
    if (countsPrompt(sequence)) this.#promptTokens += sequence.promptLen
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

/** Outputs of one prompt count it once. */
function countsPrompt(sequence: Sequence): boolean {
  if (sequence.firstPlannedMs < 0) return false
  const { group } = sequence
  return group?.members.find(({ firstPlannedMs }) => firstPlannedMs >= 0) === sequence || !group
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
