#include "node/runtime_object.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_set>

#include "node/errors.h"
#include "node/options.h"
#include "ops/op.h"

namespace nanoweave {

namespace {

// Runtimes alive in this process. Never destroyed: it is used while the process ends.
struct LiveObjects {
  std::mutex mutex;
  std::unordered_set<RuntimeObject*> objects;  // guarded by mutex
};

LiveObjects& live_objects() {
  static auto* const live = new LiveObjects;
  return *live;
}

}  // namespace

// A GPU's driver takes its memory away in an exit handler of its own, which comes with its first
// use; ours must run before it.
void RuntimeObject::register_behind_drivers(const RuntimeConfig& config) {
  const auto is_gpu = [](const std::string& device) { return device != "cpu"; };
  if (std::none_of(config.devices.begin(), config.devices.end(), is_gpu)) return;
  static const bool registered = std::atexit(on_process_exit) == 0;
  if (!registered) fail(ErrorCode::kInternal, "cannot register an exit handler");
}

Napi::Function RuntimeObject::define(Napi::Env env) {
  // process.exit() ends the main thread's environment without its cleanup hooks. Exit handlers run
  // in reverse order: the op table, which loading threads use, must exist before ours.
  static const bool registered = !op_table().empty() && std::atexit(on_process_exit) == 0;
  if (!registered) throw Napi::Error::New(env, "cannot register an exit handler");
  return DefineClass(
      env, "Runtime",
      {InstanceMethod<&RuntimeObject::load_weights>("loadWeights"),
       InstanceMethod<&RuntimeObject::load_program>("loadProgram"),
       InstanceMethod<&RuntimeObject::submit>("submit"),
       InstanceMethod<&RuntimeObject::read>("read"), InstanceMethod<&RuntimeObject::write>("write"),
       InstanceMethod<&RuntimeObject::close>("close")});
}

RuntimeObject::RuntimeObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<RuntimeObject>(info), env_(info.Env()) {
  with_js_errors(env_, [&] {
    const RuntimeConfig config = read_options(info[0]);
    mailbox_ = std::make_unique<Mailbox>(env_);
    runtime_ = std::make_unique<Runtime>(config);
    register_behind_drivers(config);
  });
  // After the mailbox: hooks run in reverse order, so ours runs while the mailbox still works.
  hooked_ = napi_add_env_cleanup_hook(env_, on_environment_exit, this) == napi_ok;
  const std::lock_guard lock(live_objects().mutex);
  live_objects().objects.insert(this);
}

RuntimeObject::~RuntimeObject() {
  if (hooked_) napi_remove_env_cleanup_hook(env_, on_environment_exit, this);
  stop();
}

void RuntimeObject::stop() {
  stopped_ = true;
  {
    const std::lock_guard lock(live_objects().mutex);
    live_objects().objects.erase(this);
  }
  if (runtime_) runtime_->shutdown();
  if (mailbox_) mailbox_->close();
}

void RuntimeObject::stop_once_closed() {
  if (!closed_ || !pending_.empty()) return;
  if (hooked_) napi_remove_env_cleanup_hook(env_, on_environment_exit, this);
  hooked_ = false;
  stop();
}

void RuntimeObject::on_environment_exit(void* self) {
  auto* const object = static_cast<RuntimeObject*>(self);
  object->hooked_ = false;
  object->stop();
}

void RuntimeObject::on_process_exit() {
  const std::lock_guard lock(live_objects().mutex);
  for (RuntimeObject* object : live_objects().objects) {
    object->mailbox_->abandon();
    object->runtime_->shutdown();
  }
  live_objects().objects.clear();
}

template <typename Start>
Napi::Value RuntimeObject::begin(Napi::Env env, const Start& start) {
  const uint32_t id = next_id_++;
  const auto deferred = Napi::Promise::Deferred::New(env);
  pending_.emplace(id, Pending{.deferred = deferred,
                               .progress = {},
                               .progress_error = {},
                               .cancelled = std::make_shared<std::atomic<bool>>(false)});
  try {
    start(id);
  } catch (const Napi::Error& error) {
    pending_.erase(id);
    deferred.Reject(error.Value());
    return deferred.Promise();
  } catch (...) {
    pending_.erase(id);
    deferred.Reject(to_js_error(env, std::current_exception()).Value());
    return deferred.Promise();
  }
  Ref();  // this object lives until the promise is settled
  mailbox_->hold();
  return deferred.Promise();
}

void RuntimeObject::settle(uint32_t id, std::exception_ptr failure, MakeValue make_value) {
  mailbox_->post([this, id, failure = std::move(failure), make_value = std::move(make_value)](
                     Napi::Env env) { settle_here(env, id, failure, make_value); });
}

void RuntimeObject::settle_here(Napi::Env env, uint32_t id, const std::exception_ptr& failure,
                                const MakeValue& make_value) {
  const auto found = pending_.find(id);
  Pending pending = std::move(found->second);
  pending_.erase(found);
  mailbox_->release();
  if (!pending.progress_error.IsEmpty()) {
    pending.deferred.Reject(pending.progress_error.Value());
  } else if (failure) {
    pending.deferred.Reject(to_js_error(env, failure).Value());
  } else {
    try {
      pending.deferred.Resolve(make_value ? make_value(env) : env.Undefined());
    } catch (const Napi::Error& error) {  // the result does not fit JavaScript's heap
      pending.deferred.Reject(error.Value());
    }
  }
  stop_once_closed();
  Unref();  // last: nothing may keep this object alive afterwards
}

void RuntimeObject::report_progress(Napi::Env env, uint32_t id, int64_t done, int64_t total) {
  Pending& pending = pending_.at(id);
  if (pending.cancelled->load(std::memory_order_relaxed)) return;
  try {
    Napi::Object progress = Napi::Object::New(env);
    progress.Set("bytesDone", Napi::Number::New(env, static_cast<double>(done)));
    progress.Set("bytesTotal", Napi::Number::New(env, static_cast<double>(total)));
    pending.progress.Call({progress});
  } catch (const Napi::Error& error) {  // cancels the load; its promise rejects with this error
    Pending& thrower = pending_.at(id);
    thrower.progress_error = error;
    thrower.cancelled->store(true, std::memory_order_relaxed);
  }
}

Napi::Value RuntimeObject::load_weights(const Napi::CallbackInfo& info) {
  return begin(info.Env(), [&](uint32_t id) {
    std::string manifest = read_string(info[0], "manifest");
    ProgressCallback progress;
    if (info[1].IsFunction()) {
      Pending& pending = pending_.at(id);
      pending.progress = Napi::Persistent(info[1].As<Napi::Function>());
      progress = [this, id, cancelled = pending.cancelled](int64_t done, int64_t total) {
        if (cancelled->load(std::memory_order_relaxed))
          fail(ErrorCode::kAborted, "the progress callback threw");
        mailbox_->post(
            [this, id, done, total](Napi::Env env) { report_progress(env, id, done, total); });
      };
    } else if (!info[1].IsUndefined()) {
      fail(ErrorCode::kUsage, "onProgress must be a function");
    }
    runtime_->load_weights(
        std::move(manifest), std::move(progress),
        [this, id](std::exception_ptr failure) { settle(id, std::move(failure), {}); });
  });
}

Napi::Value RuntimeObject::load_program(const Napi::CallbackInfo& info) {
  return begin(info.Env(), [&](uint32_t id) {
    runtime_->load_program(
        read_string(info[0], "program"), [this, id](int program, std::exception_ptr failure) {
          settle(id, std::move(failure),
                 [program](Napi::Env env) { return Napi::Number::New(env, program); });
        });
  });
}

Napi::Value RuntimeObject::submit(const Napi::CallbackInfo& info) {
  return begin(info.Env(), [&](uint32_t id) {
    const int program = read_int(info[0], "programId");
    runtime_->submit(program, read_words(info[1], "step"),
                     [this, id](std::vector<int32_t> words, std::exception_ptr failure) {
                       settle(id, std::move(failure), [words = std::move(words)](Napi::Env env) {
                         Napi::Int32Array array = Napi::Int32Array::New(env, words.size());
                         if (!words.empty())
                           std::memcpy(array.Data(), words.data(), words.size() * 4);
                         return array;
                       });
                     });
  });
}

Napi::Value RuntimeObject::read(const Napi::CallbackInfo& info) {
  return begin(info.Env(), [&](uint32_t id) {
    const int program = read_int(info[0], "programId");
    std::string buffer = read_string(info[1], "buffer");
    const int rank = read_int(info[2], "rank");
    runtime_->read(program, std::move(buffer), rank,
                   [this, id](std::vector<uint8_t> bytes, std::exception_ptr failure) {
                     settle(id, std::move(failure), [bytes = std::move(bytes)](Napi::Env env) {
                       Napi::Uint8Array array = Napi::Uint8Array::New(env, bytes.size());
                       if (!bytes.empty()) std::memcpy(array.Data(), bytes.data(), bytes.size());
                       return array;
                     });
                   });
  });
}

Napi::Value RuntimeObject::write(const Napi::CallbackInfo& info) {
  return begin(info.Env(), [&](uint32_t id) {
    const int program = read_int(info[0], "programId");
    std::string buffer = read_string(info[1], "buffer");
    const int rank = read_int(info[2], "rank");
    runtime_->write(program, std::move(buffer), rank, read_bytes(info[3], "bytes"),
                    [this, id](std::exception_ptr failure) { settle(id, std::move(failure), {}); });
  });
}

Napi::Value RuntimeObject::close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (stopped_) {
    const auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Resolve(env.Undefined());
    return deferred.Promise();
  }
  return begin(env, [&](uint32_t id) {
    runtime_->close([this, id](std::exception_ptr failure) {
      settle(id, std::move(failure), [this](Napi::Env env) {
        closed_ = true;
        return env.Undefined();
      });
    });
  });
}

}  // namespace nanoweave
