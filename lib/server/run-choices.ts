/**
 * Runs the engine requests of one HTTP request side by side. The first of each prompt leads: the
 * others wait for its first token, so that they find the prompt in the prefix cache.
 */

import type { GenerateChunk, GenerateRequest } from '../engine/types.ts'
import type { ServedEngine } from './types.ts'

export interface Choice {
  readonly index: number
  /** Index of the choice that computes the prompt; its own index if it leads. */
  readonly leader: number
  readonly request: GenerateRequest
}

export interface RunChoices {
  /** When the request came: deadlines count from here. performance.now() */
  readonly arrivalMs: number
  /** Ends every choice. The first failure aborts it. */
  readonly controller: AbortController
  /** Every leader is queued: from here on a failure is not a refusal. */
  readonly onAdmitted: () => void
  /** Nothing more of this choice is read until it resolves. */
  readonly onChunk: (choice: Choice, chunk: GenerateChunk) => Promise<void> | undefined
}

/** Resolves when all have ended; rejects with the first failure, after all have ended. */
export async function runChoices(
  engine: ServedEngine,
  choices: readonly Choice[],
  { arrivalMs, controller, onAdmitted, onChunk }: RunChoices,
): Promise<void> {
  const firstTokens = new Map<number, ReturnType<typeof deferred>>()
  for (const { leader } of choices)
    if (!firstTokens.has(leader)) firstTokens.set(leader, deferred())
  let numToAdmit = firstTokens.size
  let failure: { readonly error: unknown } | undefined

  const run = async (choice: Choice): Promise<void> => {
    const leads = choice.leader === choice.index
    const firstToken = firstTokens.get(choice.leader)!
    if (!leads) await firstToken.promise
    const { deadlineMs } = choice.request
    const stream = engine.generate({
      ...choice.request,
      ...(deadlineMs !== undefined && { deadlineMs: remainingMs(deadlineMs, arrivalMs) }),
      signal: controller.signal,
      onQueued: () => {
        if (leads && --numToAdmit === 0) onAdmitted()
      },
    })
    for await (const chunk of stream) {
      firstToken.resolve()
      const taken = onChunk(choice, chunk)
      if (taken !== undefined) await taken
    }
  }
  await Promise.all(
    choices.map(async (choice) => {
      try {
        await run(choice)
      } catch (error) {
        failure ??= { error }
        controller.abort()
      } finally {
        firstTokens.get(choice.leader)?.resolve()
      }
    }),
  )
  if (failure !== undefined) throw failure.error
}

/** Never 0: what is past its deadline fails as soon as it starts. */
function remainingMs(deadlineMs: number, arrivalMs: number): number {
  return Math.max(Number.MIN_VALUE, deadlineMs - (performance.now() - arrivalMs))
}

function deferred(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => {}
  const promise = new Promise<void>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}

const GOLDEN_GAMMA = 0x9e3779b97f4a7c15n

/** Seed of choice `index`: `seed` for the first, then its SplitMix64 sequence (Steele et al., 2014). */
export function derivedSeed(seed: number, index: number): bigint {
  if (index === 0) return BigInt.asUintN(64, BigInt(seed))
  let z = BigInt.asUintN(64, BigInt(seed) + BigInt(index) * GOLDEN_GAMMA)
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n)
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn)
  return z ^ (z >> 31n)
}
