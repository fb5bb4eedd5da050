// RuntimeObject: the JavaScript class `Runtime` (lib/native/binding.ts). Every call returns a
// promise that the runtime's threads settle through the mailbox; the JavaScript thread never waits,
// except when the environment ends with work in flight: then it aborts the work and joins the
// threads.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <unordered_map>

#include "node/mailbox.h"
#include "runtime/runtime.h"

namespace nanoweave {

class RuntimeObject : public Napi::ObjectWrap<RuntimeObject> {
 public:
  static Napi::Function define(Napi::Env env);

  explicit RuntimeObject(const Napi::CallbackInfo& info);
  ~RuntimeObject() override;

 private:
  // A promise not yet settled. JavaScript thread only.
  struct Pending {
    Napi::Promise::Deferred deferred;
    Napi::FunctionReference progress;
    Napi::Error progress_error;  // thrown by the progress callback; empty: none
    std::shared_ptr<std::atomic<bool>> cancelled;
  };
  using MakeValue = std::function<Napi::Value(Napi::Env)>;

  Napi::Value load_weights(const Napi::CallbackInfo& info);
  Napi::Value load_program(const Napi::CallbackInfo& info);
  Napi::Value submit(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // Calls start(id), which hands the work to the runtime or throws; returns the promise.
  template <typename Start>
  Napi::Value begin(Napi::Env env, const Start& start);
  // Any thread: settles promise `id` with the failure, or the value made on the JavaScript thread.
  void settle(uint32_t id, std::exception_ptr failure, MakeValue make_value);
  void settle_here(Napi::Env env, uint32_t id, const std::exception_ptr& failure,
                   const MakeValue& make_value);
  void report_progress(Napi::Env env, uint32_t id, int64_t done, int64_t total);

  void stop();              // joins the runtime's threads, closes the mailbox
  void stop_once_closed();  // the same after close(), when no promise is pending
  static void on_environment_exit(void* self);
  static void on_process_exit();
  static void register_behind_drivers(const RuntimeConfig& config);

  Napi::Env env_;
  std::unordered_map<uint32_t, Pending> pending_;
  uint32_t next_id_ = 0;
  bool hooked_ = false;
  bool closed_ = false;   // close() has settled
  bool stopped_ = false;  // nothing native is left
  std::unique_ptr<Mailbox> mailbox_;
  std::unique_ptr<Runtime> runtime_;  // last: its threads post to the mailbox
};

}  // namespace nanoweave
