#include "node/describe.h"

#include "cpu/host_info.h"
#include "cpu/isa.h"
#include "cuda/libraries.h"
#include "node/errors.h"
#include "ops/op.h"
#include "runtime/gpu_support.h"

namespace nanoweave {

namespace {

// Of strings, as std::string or const char*.
template <typename Items>
Napi::Array to_array(Napi::Env env, const Items& items) {
  Napi::Array array = Napi::Array::New(env, items.size());
  for (uint32_t i = 0; i < items.size(); ++i) array.Set(i, Napi::String::New(env, items[i]));
  return array;
}

Napi::Object describe_cpu(Napi::Env env) {
  const HostInfo info = host_info();
  Napi::Object cpu = Napi::Object::New(env);
  cpu.Set("name", "cpu");
  cpu.Set("backend", "cpu");
  cpu.Set("model", info.model);
  cpu.Set("memoryBytes", static_cast<double>(info.memory_bytes));
  cpu.Set("freeMemoryBytes", static_cast<double>(info.free_memory_bytes));
  cpu.Set("units", info.hardware_threads);
  cpu.Set("features", to_array(env, info.features));
  cpu.Set("peers", Napi::Array::New(env));
  return cpu;
}

Napi::Object describe_gpu(Napi::Env env, const GpuDescription& info) {
  Napi::Object gpu = Napi::Object::New(env);
  gpu.Set("name", info.name);
  gpu.Set("backend", "cuda");
  gpu.Set("model", info.model);
  gpu.Set("memoryBytes", static_cast<double>(info.memory_bytes));
  gpu.Set("freeMemoryBytes", static_cast<double>(info.free_bytes));
  gpu.Set("units", info.multiprocessors);
  gpu.Set("features", to_array(env, info.features));
  gpu.Set("peers", to_array(env, info.peers));
  return gpu;
}

}  // namespace

Napi::Value describe_devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return with_js_errors(env, [&] {
    Napi::Array devices = Napi::Array::New(env);
    devices.Set(0u, describe_cpu(env));
    const GpuDescriptions gpus = describe_gpus();
    for (const GpuDescription& gpu : gpus.devices)
      devices.Set(devices.Length(), describe_gpu(env, gpu));
    Napi::Object missing = Napi::Object::New(env);
    if (!gpus.missing.empty()) missing.Set("cuda", gpus.missing);
    Napi::Object build = Napi::Object::New(env);
    build.Set("version", NANOWEAVE_VERSION);
    build.Set("compiler", __VERSION__);
    build.Set("napi", std::to_string(NAPI_VERSION));
    build.Set("cuda", describe_cuda_build());
    Napi::Object out = Napi::Object::New(env);
    out.Set("devices", devices);
    out.Set("missing", missing);
    out.Set("build", build);
    return out;
  });
}

Napi::Value describe_libraries(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return with_js_errors(env, [&] {
    Napi::Array libraries = Napi::Array::New(env);
    for (const LibraryDescription& description : describe_libraries()) {
      Napi::Object library = Napi::Object::New(env);
      library.Set("name", description.name);
      if (description.missing.empty()) {
        library.Set("version", description.version);
        library.Set("path", description.path);
      } else {
        library.Set("missing", description.missing);
      }
      libraries.Set(libraries.Length(), library);
    }
    return libraries;
  });
}

Napi::Value describe_ops(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return with_js_errors(env, [&] {
    Napi::Array ops = Napi::Array::New(env);
    for (const OpDef& def : op_table()) {
      Napi::Object attrs = Napi::Object::New(env);
      for (const AttrDef& attr : def.attrs) attrs.Set(attr.name, attr.type);
      Napi::Object op = Napi::Object::New(env);
      op.Set("name", def.name);
      op.Set("inputs", to_array(env, def.inputs));
      op.Set("outputs", to_array(env, def.outputs));
      op.Set("attrs", attrs);
      op.Set("collective", def.collective);
      ops.Set(ops.Length(), op);
    }
    return ops;
  });
}

}  // namespace nanoweave
