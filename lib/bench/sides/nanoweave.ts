/** Our side of the engine bench: the public library, as a service would use it. */

import { Engine } from '../../engine/engine.ts'
import type { CpuIsa, DeviceKind, EngineOptions, Precision } from '../../engine/types.ts'
import { EngineError } from '../../errors.ts'
import type { LoadReply, LoadRequest, LogitsReply, RunReply, RunRequest, Side } from './protocol.ts'

class NanoweaveSide implements Side {
  #engine: Engine | undefined

  #loaded(): Engine {
    if (this.#engine === undefined) throw new EngineError('ERR_USAGE', 'nothing is loaded yet')
    return this.#engine
  }

  async load(request: LoadRequest): Promise<LoadReply> {
    const { settings } = request
    const start = performance.now()
    const options: EngineOptions = {
      ...(request.device.includes(':')
        ? { devices: [request.device] }
        : { device: request.device as DeviceKind }),
      threads: request.threads,
      tensorParallel: Number(settings.tensorParallel ?? 1),
      nanoBatches: Number(settings.nanoBatches ?? 1),
      precision: String(settings.precision ?? 'auto') as Precision,
      cpuIsa: String(settings.cpuIsa ?? 'auto') as CpuIsa,
      maxModelLen: request.contextTokens,
      maxNumSeqs: request.sequences,
      maxNumBatchedTokens: request.batchTokens,
      kvCacheBytes: request.kvBytes,
      // Every round computes its whole prompt.
      prefixCache: false,
    }
    this.#engine = await Engine.load(request.model, options)
    const { folder: _, ...about } = this.#engine.info
    return { loadMs: performance.now() - start, about }
  }

  async run(request: RunRequest): Promise<RunReply> {
    const engine = this.#loaded()
    const start = performance.now()
    const sequences = await Promise.all(
      request.prompts.map(async (prompt) => {
        const tokens: number[] = []
        const timesMs: number[] = []
        const stream = engine.generate({
          tokens: prompt,
          maxTokens: request.newTokens,
          temperature: 0,
          ignoreEos: true,
        })
        for await (const chunk of stream) {
          const now = performance.now() - start
          for (const token of chunk.tokens) {
            tokens.push(token)
            timesMs.push(now)
          }
        }
        return { tokens, timesMs }
      }),
    )
    return {
      tokens: sequences.map((sequence) => sequence.tokens),
      timesMs: sequences.map((sequence) => sequence.timesMs),
    }
  }

  async logits(request: { readonly tokens: readonly number[] }): Promise<LogitsReply> {
    const { logits, shape } = await this.#loaded().forward(request.tokens)
    return { vocab: shape[1], logits }
  }

  async close(): Promise<void> {
    await this.#engine?.close()
  }
}

export function createNanoweaveSide(): Side {
  return new NanoweaveSide()
}
