#include "node/describe.h"

#include "cpu/host_info.h"
#include "cpu/isa.h"
#include "cuda/libraries.h"
#include "node/errors.h"
#include "ops/op.h"

namespace nanoweave {

namespace {

Napi::Array to_array(Napi::Env env, std::span<const char* const> items) {
  Napi::Array array = Napi::Array::New(env, items.size());
  for (uint32_t i = 0; i < items.size(); ++i) array.Set(i, Napi::String::New(env, items[i]));
  return array;
}

Napi::Object describe_cpu(Napi::Env env) {
  const HostInfo info = host_info();
  Napi::Array features = Napi::Array::New(env, info.features.size());
  for (uint32_t i = 0; i < info.features.size(); ++i)
    features.Set(i, Napi::String::New(env, info.features[i]));
  Napi::Object cpu = Napi::Object::New(env);
  cpu.Set("name", "cpu");
  cpu.Set("backend", "cpu");
  cpu.Set("model", info.model);
  cpu.Set("memoryBytes", static_cast<double>(info.memory_bytes));
  cpu.Set("freeMemoryBytes", static_cast<double>(info.free_memory_bytes));
  cpu.Set("units", info.hardware_threads);
  cpu.Set("features", features);
  cpu.Set("peers", Napi::Array::New(env));
  return cpu;
}

}  // namespace

Napi::Value describe_devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return with_js_errors(env, [&] {
    Napi::Array devices = Napi::Array::New(env);
    devices.Set(0u, describe_cpu(env));
    Napi::Object missing = Napi::Object::New(env);
    missing.Set("cuda", "built without CUDA");
    Napi::Object build = Napi::Object::New(env);
    build.Set("version", NANOWEAVE_VERSION);
    build.Set("compiler", __VERSION__);
    build.Set("napi", std::to_string(NAPI_VERSION));
    build.Set("cuda", "off");
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
