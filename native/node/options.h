// Reading of JavaScript arguments. Everything that is not as binding.ts says is ERR_USAGE.
#pragma once

#include <napi.h>

#include <span>
#include <string>
#include <vector>

#include "runtime/backend.h"

namespace nanoweave {

RuntimeConfig read_options(const Napi::Value& value);

std::string read_string(const Napi::Value& value, const char* name);
int read_int(const Napi::Value& value, const char* name);
std::span<const int32_t> read_words(const Napi::Value& value, const char* name);
std::vector<uint8_t> read_bytes(const Napi::Value& value, const char* name);

}  // namespace nanoweave
