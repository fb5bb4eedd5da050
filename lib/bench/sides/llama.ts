/**
 * node-llama-cpp's side of the engine bench, through its public interface: one context with as many
 * sequences as requests, `sequence.evaluate` on token arrays, temperature 0. It is no dependency of
 * this package: it is imported from the folder the bench was told of (engine-peer.ts), and only
 * what is used here is declared.
 */

import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { EngineError } from '../../errors.ts'
import type {
  LoadReply,
  LoadRequest,
  LogitsReply,
  LogitsRequest,
  RunReply,
  RunRequest,
  Side,
} from './protocol.ts'

interface LlamaSequence {
  clearHistory(): Promise<void>
  evaluate(
    tokens: number[],
    options: { temperature: number; yieldEogToken: boolean },
  ): AsyncGenerator<number, void, void>
  controlledEvaluate(
    input: [token: number, options: { generateNext: { logits: true } }][],
  ): Promise<({ next: { logits?: Map<number, number> } } | undefined)[]>
}

interface LlamaContext {
  readonly flashAttention: unknown
  readonly currentThreads: number
  readonly batchSize: number
  readonly kvCacheKeyType: number
  getSequence(): LlamaSequence
  dispose(): Promise<void>
}

interface LlamaModel {
  createContext(options: {
    contextSize: number
    batchSize: number
    sequences: number
    threads: number
    flashAttention: boolean
  }): Promise<LlamaContext>
  dispose(): Promise<void>
}

interface Llama {
  readonly systemInfo: string
  readonly buildType: string
  readonly llamaCppRelease: { readonly repo: string; readonly release: string }
  loadModel(options: {
    modelPath: string
    gpuLayers: number
    useMmap: boolean
  }): Promise<LlamaModel>
  dispose(): Promise<void>
}

interface LlamaModule {
  getLlama(options: {
    gpu: false
    build: 'never'
    skipDownload: true
    maxThreads: number
    logLevel: string
  }): Promise<Llama>
}

class LlamaSide implements Side {
  #llama: Llama | undefined
  #model: LlamaModel | undefined
  #context: LlamaContext | undefined
  #sequences: LlamaSequence[] = []
  #vocab = 0

  async load(request: LoadRequest): Promise<LoadReply> {
    const { settings, threads, contextTokens, sequences, batchTokens } = request
    const packageFolder = String(settings.packageFolder)
    const entry = pathToFileURL(path.join(packageFolder, 'dist', 'index.js')).href
    const { getLlama }: LlamaModule = await import(entry)
    const start = performance.now()
    this.#llama = await getLlama({
      gpu: false,
      build: 'never',
      skipDownload: true,
      maxThreads: threads,
      // Its check that text survives tokenizing fails by design on a vocabulary of fillers.
      logLevel: 'error',
    })
    this.#model = await this.#llama.loadModel({
      modelPath: request.model,
      gpuLayers: 0,
      useMmap: true,
    })
    this.#context = await this.#model.createContext({
      contextSize: contextTokens,
      batchSize: batchTokens,
      sequences,
      threads,
      flashAttention: settings.flashAttention === true,
    })
    const context = this.#context
    this.#sequences = Array.from({ length: sequences }, () => context.getSequence())
    this.#vocab = Number(settings.vocab)
    return {
      loadMs: performance.now() - start,
      about: {
        llamaCpp: this.#llama.llamaCppRelease,
        buildType: this.#llama.buildType,
        systemInfo: this.#llama.systemInfo.trim(),
        threads: context.currentThreads,
        batchSize: context.batchSize,
        flashAttention: context.flashAttention,
        kvCacheType: context.kvCacheKeyType === 1 ? 'f16' : context.kvCacheKeyType,
        mmap: true,
      },
    }
  }

  async run(request: RunRequest): Promise<RunReply> {
    // Emptying the cache is not part of what is measured.
    for (const sequence of this.#sequences) await sequence.clearHistory()
    const start = performance.now()
    const results = await Promise.all(
      request.prompts.map(async (prompt, index) => {
        const tokens: number[] = []
        const timesMs: number[] = []
        const stream = this.#sequences[index]!.evaluate([...prompt], {
          temperature: 0,
          yieldEogToken: true,
        })
        for await (const token of stream) {
          tokens.push(token)
          timesMs.push(performance.now() - start)
          if (tokens.length === request.newTokens) break
        }
        return { tokens, timesMs }
      }),
    )
    return {
      tokens: results.map((result) => result.tokens),
      timesMs: results.map((result) => result.timesMs),
    }
  }

  async logits(request: LogitsRequest): Promise<LogitsReply> {
    const sequence = this.#sequences[0]
    if (sequence === undefined) throw new EngineError('ERR_USAGE', 'nothing is loaded yet')
    await sequence.clearHistory()
    const outputs = await sequence.controlledEvaluate(
      request.tokens.map((token) => [token, { generateNext: { logits: true } }]),
    )
    const logits = new Float32Array(request.tokens.length * this.#vocab)
    for (const [row, output] of outputs.entries()) {
      for (const [token, value] of output?.next.logits ?? [])
        logits[row * this.#vocab + token] = value
    }
    return { vocab: this.#vocab, logits }
  }

  async close(): Promise<void> {
    await this.#context?.dispose()
    await this.#model?.dispose()
    await this.#llama?.dispose()
  }
}

export function createLlamaSide(): Side {
  return new LlamaSide()
}
