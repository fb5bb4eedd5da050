/** The engine. */

import type { Tokenizer } from '../tokenizer/index.ts'
import type {
  CloseOptions,
  EngineInfo,
  EngineOptions,
  EngineStats,
  Explanation,
  ForwardResult,
  GenerateRequest,
  GenerateResult,
  GenerateStream,
  ScoreOptions,
  ScoreResult,
} from './types.ts'

export declare class Engine implements AsyncDisposable {
  private constructor()
  static load(folder: string, options?: EngineOptions): Promise<Engine>
  readonly info: EngineInfo
  /** Undefined: the folder has no tokenizer, requests need `tokens`. */
  readonly tokenizer: Tokenizer | undefined
  /** Starts with the first `next()`. */
  generate(request: GenerateRequest): GenerateStream
  complete(request: GenerateRequest): Promise<GenerateResult>
  /** The token ids a request's prompt or messages become. */
  tokenize(request: GenerateRequest): Promise<number[]>
  forward(tokens: readonly number[], options?: ScoreOptions): Promise<ForwardResult>
  score(tokens: readonly number[], options?: ScoreOptions): Promise<ScoreResult>
  explain(id: number): Explanation | undefined
  stats(): EngineStats
  close(options?: CloseOptions): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}
