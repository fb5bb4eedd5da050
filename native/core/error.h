// EngineError: the one exception type of the native side. It is thrown anywhere below node/ and
// converted once, at the border. The codes mirror lib/errors.ts (test/errors.test.ts compares).
#pragma once

#include <stdexcept>
#include <string>

namespace nanoweave {

// X(name): ErrorCode::kName prints as "ERR_NAME" text in error_code_name().
enum class ErrorCode {
  kUsage,
  kIo,
  kModelNotFound,
  kModelConfig,
  kUnsupportedModel,
  kUnsupportedLayout,
  kUnsupportedOption,
  kSafetensors,
  kTensorMissing,
  kTensorShape,
  kTokenizer,
  kTemplate,
  kNoBinary,
  kNoDevice,
  kOutOfMemory,
  kProgram,
  kStep,
  kRankTimeout,
  kRankFault,
  kKvExhausted,
  kContextLength,
  kQueueFull,
  kDeadline,
  kAborted,
  kClosed,
  kInternal,
};

// "ERR_USAGE", …
const char* error_code_name(ErrorCode code);

class EngineError : public std::runtime_error {
 public:
  EngineError(ErrorCode code, const std::string& message)
      : std::runtime_error(message), code(code) {}

  ErrorCode code;
  int rank = -1;   // -1: does not apply
  std::string op;  // label of the op; empty: does not apply
  int step = -1;
};

// printf-style; the message says what happened, why, and what to do next.
[[noreturn]] void fail(ErrorCode code, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

}  // namespace nanoweave

// Internal invariants only; user input is refused with fail() and a message of its own.
#define CHECK(condition)                                                                        \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::nanoweave::fail(::nanoweave::ErrorCode::kInternal, "%s:%d: check failed: %s", __FILE__, \
                        __LINE__, #condition);                                                  \
  } while (0)
