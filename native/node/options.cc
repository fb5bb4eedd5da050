#include "node/options.h"

#include <cmath>

#include "core/error.h"

namespace nanoweave {

namespace {

int64_t read_integer(const Napi::Value& value, const char* name, double low, double high) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= low && number <= high) || number != std::trunc(number))
    fail(ErrorCode::kUsage, "%s must be an integer between %.0f and %.0f", name, low, high);
  return static_cast<int64_t>(number);
}

}  // namespace

std::string read_string(const Napi::Value& value, const char* name) {
  if (!value.IsString()) fail(ErrorCode::kUsage, "%s must be a string", name);
  return value.As<Napi::String>().Utf8Value();
}

int read_int(const Napi::Value& value, const char* name) {
  return static_cast<int>(read_integer(value, name, INT32_MIN, INT32_MAX));
}

std::span<const int32_t> read_words(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array)
    fail(ErrorCode::kUsage, "%s must be an Int32Array", name);
  const auto array = value.As<Napi::Int32Array>();
  return {array.Data(), array.ElementLength()};
}

std::vector<uint8_t> read_bytes(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    fail(ErrorCode::kUsage, "%s must be a Uint8Array", name);
  const auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

RuntimeConfig read_options(const Napi::Value& value) {
  if (!value.IsObject()) fail(ErrorCode::kUsage, "Runtime needs an options object");
  const auto options = value.As<Napi::Object>();
  const Napi::Value ranks = options.Get("ranks");
  if (!ranks.IsArray()) fail(ErrorCode::kUsage, "ranks must be an array");
  RuntimeConfig config;
  const auto list = ranks.As<Napi::Array>();
  constexpr uint32_t kMaxRanks = 1024;
  if (list.Length() > kMaxRanks)
    fail(ErrorCode::kUsage, "%u ranks, at most %u", list.Length(), kMaxRanks);
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Value rank = list.Get(i);
    if (!rank.IsObject()) fail(ErrorCode::kUsage, "ranks[%u] must be an object", i);
    config.devices.push_back(read_string(rank.As<Napi::Object>().Get("device"), "a rank's device"));
  }
  config.tp = read_int(options.Get("tp"), "tp");
  config.heap_bytes = read_integer(options.Get("heapBytes"), "heapBytes", 0, 0x1p53);
  config.threads_per_rank = read_int(options.Get("threadsPerRank"), "threadsPerRank");
  config.wait_timeout_ms = read_int(options.Get("waitTimeoutMs"), "waitTimeoutMs");
  const Napi::Value deterministic = options.Get("deterministic");
  if (!deterministic.IsBoolean()) fail(ErrorCode::kUsage, "deterministic must be a boolean");
  config.deterministic = deterministic.As<Napi::Boolean>().Value();
  config.cpu_isa = read_string(options.Get("cpuIsa"), "cpuIsa");
  const Napi::Value graphs = options.Get("graphs");
  if (!graphs.IsUndefined() && !graphs.IsBoolean())
    fail(ErrorCode::kUsage, "graphs must be a boolean");
  config.graphs = graphs.IsUndefined() || graphs.As<Napi::Boolean>().Value();
  return config;
}

}  // namespace nanoweave
