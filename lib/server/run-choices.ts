/** Runs the engine requests of one HTTP request side by side: one for each prompt, with `n` choices. */

import type { GenerateChunk, GenerateManyRequest } from '../engine/types.ts'
import type { ServedEngine } from './types.ts'

/** The choices of one prompt. */
export interface ChoiceGroup {
  /** Index of its first choice; the others follow. */
  readonly first: number
  readonly request: GenerateManyRequest
}

export interface RunChoices {
  /** When the request came: deadlines count from here. performance.now() */
  readonly arrivalMs: number
  /** Ends every choice. The first failure aborts it. */
  readonly controller: AbortController
  /** All are queued: from here on a failure is not a refusal. */
  readonly onAdmitted: () => void
  /** Nothing more of choice `index` is read until it resolves. */
  readonly onChunk: (index: number, chunk: GenerateChunk) => Promise<void> | undefined
}

export function countChoices(groups: readonly ChoiceGroup[]): number {
  return groups.reduce((sum, { request }) => sum + request.n, 0)
}

/** Resolves when all have ended; rejects with the first failure, after all have ended. */
export async function runChoices(
  engine: ServedEngine,
  groups: readonly ChoiceGroup[],
  { arrivalMs, controller, onAdmitted, onChunk }: RunChoices,
): Promise<void> {
  let numToAdmit = countChoices(groups)
  let failure: { readonly error: unknown } | undefined
  const guard = async (run: () => Promise<void>): Promise<void> => {
    try {
      await run()
    } catch (error) {
      failure ??= { error }
      controller.abort()
    }
  }
  const runGroup = async ({ first, request }: ChoiceGroup): Promise<void> => {
    const { deadlineMs } = request
    const streams = engine.generateMany({
      ...request,
      ...(deadlineMs !== undefined && { deadlineMs: remainingMs(deadlineMs, arrivalMs) }),
      signal: controller.signal,
      onQueued: () => {
        if (--numToAdmit === 0) onAdmitted()
      },
    })
    const read = async (stream: AsyncIterable<GenerateChunk>, index: number): Promise<void> => {
      for await (const chunk of stream) {
        const taken = onChunk(first + index, chunk)
        if (taken !== undefined) await taken
      }
    }
    await Promise.all(streams.map((stream, index) => guard(() => read(stream, index))))
  }
  await Promise.all(groups.map((group) => guard(() => runGroup(group))))
  if (failure !== undefined) throw failure.error
}

/** Never 0: what is past its deadline fails as soon as it starts. */
function remainingMs(deadlineMs: number, arrivalMs: number): number {
  return Math.max(Number.MIN_VALUE, deadlineMs - (performance.now() - arrivalMs))
}
