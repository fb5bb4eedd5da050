// describeDevices(), describeLibraries() and describeOps() of lib/native/binding.ts.
#pragma once

#include <napi.h>

namespace nanoweave {

Napi::Value describe_devices(const Napi::CallbackInfo& info);
Napi::Value describe_libraries(const Napi::CallbackInfo& info);
Napi::Value describe_ops(const Napi::CallbackInfo& info);

}  // namespace nanoweave
