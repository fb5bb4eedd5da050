/**
 * Generation: one call of `dispatch`, `generate` or `generateMany`, from its start to the end of its last
 * output. All outputs are queued together or none is; each ends on its own. A handler is told of every
 * chunk as it comes; a stream is a handler that keeps chunks until they are asked for.
 */

import { inspect } from 'node:util'
import { EngineError } from '../errors.ts'
import type { Grammar } from '../grammar/grammar.ts'
import { createForkGroup } from '../scheduler/sequence.ts'
import type { Constraints } from './constraints.ts'
import { RequestControl } from './control.ts'
import type { JobFactory } from './job-factory.ts'
import type { Constraint, GenerateJob, GenerateSink } from './jobs.ts'
import type { StepLoop } from './loop.ts'
import { ChunkStream } from './stream.ts'
import type {
  GenerateChunk,
  GenerateHandler,
  GenerateRequest,
  GenerateResult,
  GenerateStream,
  TokenLogprob,
  Usage,
} from './types.ts'

/** What it needs of its engine. */
export interface GenerationContext {
  readonly jobs: JobFactory
  readonly loop: StepLoop
  readonly constraints: Constraints
  /** Throws if the engine takes no requests any more. */
  readonly requireOpen: () => void
  readonly promptTokens: (request: GenerateRequest) => Promise<readonly number[]>
  readonly reasonOf: (error: unknown) => EngineError
}

/**
 * Streams of `numOutputs` outputs of the request's prompt. Nothing happens before one is read, not
 * even `check`, which throws what is wrong with the request's names.
 */
export function openGeneration(
  request: GenerateRequest,
  numOutputs: number,
  context: GenerationContext,
  check: () => void = () => {},
): GenerateStream[] {
  const streams = Array.from(
    { length: numOutputs },
    (_, index) =>
      new ChunkStream(
        () => generation.start(check),
        () => generation.leave(index),
      ),
  )
  const generation = new Generation(request, numOutputs, context, {
    onChunk(index, chunk) {
      streams[index].push(chunk)
      if (chunk.finishReason !== undefined) streams[index].end()
    },
    onError(index, error) {
      streams[index].fail(error)
    },
  })
  return streams
}

export class Generation {
  readonly #outputs: readonly Output[]
  readonly #request: GenerateRequest
  readonly #context: GenerationContext
  #control: RequestControl | undefined
  /** Aborted when nobody waits for a grammar any more. */
  #opening: AbortController | undefined
  #isStarted = false

  constructor(
    request: GenerateRequest,
    numOutputs: number,
    context: GenerationContext,
    handler: GenerateHandler,
  ) {
    this.#request = request
    this.#context = context
    const onEnd = () => this.#onOutputEnd()
    this.#outputs = Array.from(
      { length: numOutputs },
      (_, index) => new Output(index, context.loop, handler, onEnd),
    )
  }

  /** Once: further calls do nothing. `check` throws what is wrong with the request's names. */
  start(check: () => void = () => {}): void {
    if (this.#isStarted) return
    this.#isStarted = true
    this.#run(check).catch((error: unknown) => this.#fail(this.#context.reasonOf(error)))
  }

  /** Nobody wants this output any more: its handler hears nothing further of it. */
  leave(index: number): void {
    this.#outputs[index].leave(new EngineError('ERR_ABORTED', 'the consumer stopped reading'))
  }

  async #run(check: () => void): Promise<void> {
    const arrivalMs = performance.now()
    const { requireOpen, promptTokens, constraints } = this.#context
    check()
    requireOpen()
    const control = new RequestControl(this.#request, (error) => this.#fail(error))
    this.#control = control
    control.throwIfStopped()
    const tokens = await promptTokens(this.#request)
    control.throwIfStopped()
    const grammar = constraints.read(this.#request)
    if (grammar !== undefined) await this.#holdTo(grammar)
    this.#queue(tokens, arrivalMs)
  }

  /** One after another: the first compiles the grammar, the others find it. */
  async #holdTo(grammar: Grammar): Promise<void> {
    const { constraints } = this.#context
    this.#opening = new AbortController()
    const { signal } = this.#opening
    for (const output of this.#outputs) {
      if (output.isEnded) continue
      output.hold(await constraints.open(grammar, (error) => output.fail(error), signal))
    }
  }

  /** All outputs that are still wanted, or none. */
  #queue(tokens: readonly number[], arrivalMs: number): void {
    const wanted = this.#outputs.filter(({ isEnded }) => !isEnded)
    if (wanted.length === 0) return
    const { requireOpen, jobs, loop } = this.#context
    requireOpen()
    const group = this.#outputs.length > 1 ? createForkGroup(wanted.length) : undefined
    const created = wanted.map((output) =>
      jobs.generate(this.#request, tokens, arrivalMs, output, {
        index: output.index,
        constraint: output.constraint,
        group,
      }),
    )
    wanted.forEach((output, i) => {
      loop.add(created[i])
      output.job = created[i]
    })
    for (const output of wanted) this.#tellQueued(output)
  }

  #tellQueued({ job, index, isEnded }: Output): void {
    if (job === undefined || isEnded) return
    try {
      this.#request.onQueued?.(job.sequence.id, index)
    } catch (error) {
      // The caller's own error goes back to the caller as it is.
      for (const output of this.#outputs) output.fail(error)
    }
  }

  #fail(error: EngineError): void {
    for (const output of this.#outputs) output.fail(error)
  }

  #onOutputEnd(): void {
    if (!this.#outputs.every(({ isEnded }) => isEnded)) return
    this.#control?.disarm()
    this.#opening?.abort()
  }
}

/** One output: the job's sink, and its handler's side. */
class Output implements GenerateSink {
  readonly index: number
  job: GenerateJob | undefined
  readonly #loop: StepLoop
  readonly #handler: GenerateHandler
  readonly #onEnd: () => void
  #constraint: Constraint | undefined
  #isEnded = false

  constructor(index: number, loop: StepLoop, handler: GenerateHandler, onEnd: () => void) {
    this.index = index
    this.#loop = loop
    this.#handler = handler
    this.#onEnd = onEnd
  }

  /** Its handler has heard the last of it. */
  get isEnded(): boolean {
    return this.#isEnded
  }
  get constraint(): Constraint | undefined {
    return this.#constraint
  }

  /** It will follow the constraint, if somebody wants it still. */
  hold(constraint: Constraint): void {
    if (this.#isEnded) constraint.matcher.close()
    else this.#constraint = constraint
  }

  push(chunk: GenerateChunk): void {
    if (this.#isEnded) return
    try {
      this.#handler.onChunk(this.index, chunk)
    } catch (error) {
      // The handler's own error goes back to it as it is.
      this.fail(error)
      return
    }
    if (chunk.finishReason !== undefined) this.#end()
  }

  /** `error`: what the handler gets. */
  fail(error: unknown): void {
    if (this.#isEnded) return
    const reason =
      error instanceof EngineError
        ? error
        : new EngineError('ERR_ABORTED', 'the request was given up by its caller', { cause: error })
    this.leave(reason)
    try {
      this.#handler.onError(this.index, error)
    } catch (thrown) {
      // Who calls this has others to tell.
      process.emitWarning(`onError of a dispatched request threw: ${inspect(thrown)}`, {
        type: 'NanoweaveWarning',
      })
    }
  }

  /** Ends it without telling the handler. */
  leave(reason: EngineError): void {
    if (this.#isEnded) return
    this.#end()
    // A job closes the matcher itself.
    if (this.job !== undefined) this.#loop.cancel(this.job, reason)
    else this.#constraint?.matcher.close()
  }

  #end(): void {
    this.#isEnded = true
    this.#onEnd()
  }
}

/** Reads a stream to its end. */
export async function collectOutput(stream: GenerateStream): Promise<Omit<GenerateResult, 'id'>> {
  let text = ''
  const tokens: number[] = []
  const logprobs: TokenLogprob[] = []
  for await (const chunk of stream) {
    text += chunk.text
    for (const token of chunk.tokens) tokens.push(token)
    for (const logprob of chunk.logprobs ?? []) logprobs.push(logprob)
    const { finishReason, stopReason, usage, timings } = chunk
    if (finishReason === undefined || usage === undefined || timings === undefined) continue
    return {
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

/** Of several outputs of one prompt, which counts once. */
export function totalUsage(usages: readonly Usage[]): Usage {
  return {
    promptTokens: usages[0].promptTokens,
    completionTokens: usages.reduce((sum, { completionTokens }) => sum + completionTokens, 0),
    cachedTokens: Math.min(...usages.map(({ cachedTokens }) => cachedTokens)),
  }
}
