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
  /** The choice has the engine's `id`. */
  readonly onQueued: (index: number, id: number) => void
  /** All are queued: from here on a failure is not a refusal. */
  readonly onAdmitted: () => void
  readonly onChunk: (index: number, chunk: GenerateChunk) => void
}

export function countChoices(groups: readonly ChoiceGroup[]): number {
  return groups.reduce((sum, { request }) => sum + request.n, 0)
}

/** Resolves when all have ended; rejects with the first failure, after all have ended. */
export function runChoices(
  engine: ServedEngine,
  groups: readonly ChoiceGroup[],
  { arrivalMs, controller, onQueued, onAdmitted, onChunk }: RunChoices,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let numOpen = countChoices(groups)
    let numToAdmit = numOpen
    let failure: { readonly error: unknown } | undefined
    const end = (numEnded = 1): void => {
      numOpen -= numEnded
      if (numOpen > 0) return
      if (failure === undefined) resolve()
      else reject(failure.error)
    }
    const fail = (error: unknown, numEnded = 1): void => {
      failure ??= { error }
      controller.abort()
      end(numEnded)
    }
    const runGroup = ({ first, request }: ChoiceGroup): void => {
      const { deadlineMs } = request
      const whole: GenerateManyRequest = {
        ...request,
        ...(deadlineMs !== undefined && { deadlineMs: remainingMs(deadlineMs, arrivalMs) }),
        signal: controller.signal,
        onQueued: (id, index) => {
          onQueued(first + index, id)
          if (--numToAdmit === 0) onAdmitted()
        },
      }
      engine.dispatch(whole, {
        onChunk(index, chunk) {
          onChunk(first + index, chunk)
          if (chunk.finishReason !== undefined) end()
        },
        onError: (_, error) => fail(error),
      })
    }
    for (const group of groups) {
      try {
        runGroup(group)
      } catch (error) {
        fail(error, group.request.n)
      }
    }
  })
}

/** Never 0: what is past its deadline fails as soon as it starts. */
function remainingMs(deadlineMs: number, arrivalMs: number): number {
  return Math.max(Number.MIN_VALUE, deadlineMs - (performance.now() - arrivalMs))
}
