/** nanoweave: the public library. Everything a program may import is named here. */

export { Engine } from './engine/engine.ts'
export { type Replay, replayEventLog } from './engine/event-log.ts'
export { formatTrace, parseTrace } from './engine/expert-steps.ts'
export type {
  BalancePolicy,
  ChatMessage,
  CloseOptions,
  CompleteManyResult,
  CpuIsa,
  Decision,
  DeviceKind,
  EngineInfo,
  EngineOptions,
  EngineStats,
  ExpertLoads,
  ExpertTrace,
  Explanation,
  FinishReason,
  ForwardResult,
  GenerateChunk,
  GenerateHandler,
  GenerateManyRequest,
  GenerateRequest,
  GenerateResult,
  GenerateStream,
  LoadProgress,
  MessagePart,
  Precision,
  ProgramSummary,
  SamplingOptions,
  ScoreOptions,
  ScoreResult,
  Timings,
  TokenLogprob,
  Usage,
} from './engine/types.ts'
export { EngineError, ERROR_CODES, type ErrorCode, type ErrorDetails } from './errors.ts'
