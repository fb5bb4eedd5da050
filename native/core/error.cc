#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace nanoweave {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage:
      return "ERR_USAGE";
    case ErrorCode::kIo:
      return "ERR_IO";
    case ErrorCode::kModelNotFound:
      return "ERR_MODEL_NOT_FOUND";
    case ErrorCode::kModelConfig:
      return "ERR_MODEL_CONFIG";
    case ErrorCode::kUnsupportedModel:
      return "ERR_UNSUPPORTED_MODEL";
    case ErrorCode::kUnsupportedLayout:
      return "ERR_UNSUPPORTED_LAYOUT";
    case ErrorCode::kUnsupportedOption:
      return "ERR_UNSUPPORTED_OPTION";
    case ErrorCode::kSafetensors:
      return "ERR_SAFETENSORS";
    case ErrorCode::kTensorMissing:
      return "ERR_TENSOR_MISSING";
    case ErrorCode::kTensorShape:
      return "ERR_TENSOR_SHAPE";
    case ErrorCode::kTokenizer:
      return "ERR_TOKENIZER";
    case ErrorCode::kTemplate:
      return "ERR_TEMPLATE";
    case ErrorCode::kNoBinary:
      return "ERR_NO_BINARY";
    case ErrorCode::kNoDevice:
      return "ERR_NO_DEVICE";
    case ErrorCode::kOutOfMemory:
      return "ERR_OUT_OF_MEMORY";
    case ErrorCode::kProgram:
      return "ERR_PROGRAM";
    case ErrorCode::kStep:
      return "ERR_STEP";
    case ErrorCode::kRankTimeout:
      return "ERR_RANK_TIMEOUT";
    case ErrorCode::kRankFault:
      return "ERR_RANK_FAULT";
    case ErrorCode::kKvExhausted:
      return "ERR_KV_EXHAUSTED";
    case ErrorCode::kContextLength:
      return "ERR_CONTEXT_LENGTH";
    case ErrorCode::kQueueFull:
      return "ERR_QUEUE_FULL";
    case ErrorCode::kDeadline:
      return "ERR_DEADLINE";
    case ErrorCode::kAborted:
      return "ERR_ABORTED";
    case ErrorCode::kClosed:
      return "ERR_CLOSED";
    case ErrorCode::kInternal:
      return "ERR_INTERNAL";
  }
  return "ERR_INTERNAL";
}

void fail(ErrorCode code, const char* format, ...) {
  char buffer[1024];  // longer messages are cut, never overrun
  va_list args;
  va_start(args, format);
  std::vsnprintf(buffer, sizeof buffer, format, args);
  va_end(args);
  throw EngineError(code, buffer);
}

}  // namespace nanoweave
