/**
 * Generation: one call of `generate` or `generateMany`, from the first read of any of its streams to
 * the end of the last. All outputs are queued together or none is; each ends on its own.
 */

import { EngineError } from '../errors.ts'
import { createForkGroup } from '../scheduler/sequence.ts'
import type { Constraints } from './constraints.ts'
import { RequestControl } from './control.ts'
import type { JobFactory } from './job-factory.ts'
import type { Constraint, GenerateJob, GenerateSink } from './jobs.ts'
import type { StepLoop } from './loop.ts'
import { ChunkStream } from './stream.ts'
import type {
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
  const generation = new Generation(request, numOutputs, context, check)
  return generation.outputs.map(({ stream }) => stream)
}

class Generation {
  readonly outputs: readonly Output[]
  readonly #request: GenerateRequest
  readonly #context: GenerationContext
  readonly #check: () => void
  #control: RequestControl | undefined
  #isStarted = false

  constructor(
    request: GenerateRequest,
    numOutputs: number,
    context: GenerationContext,
    check: () => void,
  ) {
    this.#request = request
    this.#context = context
    this.#check = check
    const onStart = () => this.#start()
    const onEnd = () => this.#onOutputEnd()
    this.outputs = Array.from(
      { length: numOutputs },
      (_, index) => new Output(index, context.loop, onStart, onEnd),
    )
  }

  #start(): void {
    if (this.#isStarted) return
    this.#isStarted = true
    this.#run().catch((error: unknown) => this.#fail(this.#context.reasonOf(error)))
  }

  async #run(): Promise<void> {
    const arrivalMs = performance.now()
    const { requireOpen, promptTokens, constraints } = this.#context
    this.#check()
    requireOpen()
    const control = new RequestControl(this.#request, (error) => this.#fail(error))
    this.#control = control
    control.throwIfStopped()
    const tokens = await promptTokens(this.#request)
    control.throwIfStopped()
    // One after another: the first compiles the grammar, the others find it.
    for (const output of this.outputs) {
      if (output.stream.isEnded) continue
      output.hold(await constraints.open(this.#request, (error) => output.end(error)))
    }
    this.#queue(tokens, arrivalMs)
  }

  /** All outputs that are still wanted, or none. */
  #queue(tokens: readonly number[], arrivalMs: number): void {
    const wanted = this.outputs.filter(({ stream }) => !stream.isEnded)
    if (wanted.length === 0) return
    const { requireOpen, jobs, loop } = this.#context
    requireOpen()
    const group = this.outputs.length > 1 ? createForkGroup() : undefined
    const created = wanted.map(({ index, sink, constraint }) =>
      jobs.generate(this.#request, tokens, arrivalMs, sink, { index, constraint, group }),
    )
    wanted.forEach((output, i) => {
      loop.add(created[i])
      output.job = created[i]
    })
    for (const output of wanted) this.#tellQueued(output)
  }

  #tellQueued({ job, index }: Output): void {
    if (job === undefined) return
    try {
      this.#request.onQueued?.(job.sequence.id, index)
    } catch (error) {
      // The caller's own error goes back to the caller as it is.
      const reason = new EngineError('ERR_ABORTED', 'onQueued threw', { cause: error })
      for (const output of this.outputs) output.end(reason, error)
    }
  }

  #fail(error: EngineError): void {
    for (const output of this.outputs) output.end(error)
  }

  #onOutputEnd(): void {
    if (this.outputs.every(({ stream }) => stream.isEnded)) this.#control?.disarm()
  }
}

/** One output, from its stream's side. */
class Output {
  readonly index: number
  readonly stream: ChunkStream
  readonly sink: GenerateSink
  job: GenerateJob | undefined
  readonly #loop: StepLoop
  #constraint: Constraint | undefined

  constructor(index: number, loop: StepLoop, onStart: () => void, onEnd: () => void) {
    this.index = index
    this.#loop = loop
    this.stream = new ChunkStream(onStart, () => {
      this.#cancel(new EngineError('ERR_ABORTED', 'the consumer stopped reading'))
      onEnd()
    })
    this.sink = {
      push: (chunk) => {
        this.stream.push(chunk)
        if (chunk.finishReason === undefined) return
        this.stream.end()
        onEnd()
      },
      fail: (error) => {
        this.stream.fail(error)
        onEnd()
      },
    }
  }

  get constraint(): Constraint | undefined {
    return this.#constraint
  }

  /** Its output will follow the constraint, if there is one and somebody reads it still. */
  hold(constraint: Constraint | undefined): void {
    if (this.stream.isEnded) constraint?.matcher.close()
    else this.#constraint = constraint
  }

  /** `shown`: what the reader gets instead of the reason. */
  end(reason: EngineError, shown: unknown = reason): void {
    this.stream.fail(shown)
    this.#cancel(reason)
    this.sink.fail(reason)
  }

  /** A job closes the matcher itself. */
  #cancel(error: EngineError): void {
    if (this.job !== undefined) this.#loop.cancel(this.job, error)
    else this.#constraint?.matcher.close()
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
