/**
 * Prefill and decode times out of token arrival times, the same for every engine: arrivals are all
 * that an outside observer sees, whatever an engine does inside.
 */

import { EngineError } from '../errors.ts'

/** Milliseconds from the request until every sequence has its first token. */
export function prefillMs(timesMs: readonly (readonly number[])[]): number {
  return Math.max(...timesMs.map((times) => times[0]!))
}

/**
 * Milliseconds per decoded token of one sequence, over the time in which all sequences decode: from
 * the last first token to the first last token. With one sequence that is (last - first) / (n - 1).
 * ERR_USAGE when no such time exists (outputs too short for the number of sequences).
 */
export function decodeMsPerToken(timesMs: readonly (readonly number[])[]): number {
  const begin = prefillMs(timesMs)
  const end = Math.min(...timesMs.map((times) => times.at(-1)!))
  let tokens = 0
  for (const times of timesMs) {
    for (const time of times) if (time > begin && time <= end) tokens++
  }
  if (end <= begin || tokens < timesMs.length) {
    throw new EngineError(
      'ERR_USAGE',
      'the sequences never decoded together: ask for longer outputs',
    )
  }
  return ((end - begin) * timesMs.length) / tokens
}
