/**
 * Eight requests at once, batched by the engine; the slowest half is cancelled after a while and
 * the others finish undisturbed. Run: node examples/batch-abort.mjs [MODEL]
 */

import { Engine, EngineError } from 'nanoweave'

const folder = process.argv[2] ?? 'models/tiny-dense'
const engine = await Engine.load(folder, { maxNumSeqs: 8 })
const patience = AbortSignal.timeout(500)

const results = await Promise.allSettled(
  Array.from({ length: 8 }, (_, i) =>
    engine.complete({
      prompt: 'Once upon a time',
      seed: i,
      temperature: 0.8,
      // Odd ones would go on to the end of the context.
      ...(i % 2 === 0 ? { maxTokens: 40 } : { ignoreEos: true, signal: patience }),
    }),
  ),
)

for (const [i, result] of results.entries()) {
  if (result.status === 'fulfilled') {
    console.log(`${i}: ${result.value.text.trim().slice(0, 70)}…`)
  } else if (result.reason instanceof EngineError && result.reason.code === 'ERR_ABORTED') {
    console.log(`${i}: cancelled`)
  } else {
    throw result.reason
  }
}
await engine.close()
