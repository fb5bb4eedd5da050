// The addon: exactly the surface of lib/native/binding.ts.
#include <napi.h>

#include "node/describe.h"
#include "node/runtime_object.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("describeDevices", Napi::Function::New<nanoweave::describe_devices>(env));
  exports.Set("describeLibraries", Napi::Function::New<nanoweave::describe_libraries>(env));
  exports.Set("describeOps", Napi::Function::New<nanoweave::describe_ops>(env));
  exports.Set("Runtime", nanoweave::RuntimeObject::define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(nanoweave, init)
