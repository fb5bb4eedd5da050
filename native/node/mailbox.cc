#include "node/mailbox.h"

#include <memory>
#include <utility>

namespace nanoweave {

namespace {

void deliver(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Mailbox::Letter> letter(static_cast<Mailbox::Letter*>(data));
  if (env == nullptr) return;  // the environment is being torn down
  const Napi::HandleScope scope(env);
  try {
    (*letter)(env);
  } catch (const Napi::Error&) {
    // Only when JavaScript can no longer run (worker terminated): nobody is left to tell.
  }
}

}  // namespace

Mailbox::Mailbox(Napi::Env env) : env_(env) {
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "nanoweave"), 0,
                                      1, nullptr, nullptr, nullptr, deliver, &function_);
  NAPI_THROW_IF_FAILED_VOID(env, status);
  napi_unref_threadsafe_function(env, function_);
}

Mailbox::~Mailbox() { close(); }

void Mailbox::post(Letter letter) {
  auto owned = std::make_unique<Letter>(std::move(letter));
  const std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  const napi_status status =
      napi_call_threadsafe_function(function_, owned.get(), napi_tsfn_nonblocking);
  if (status == napi_ok)
    owned.release();  // deliver() owns it
  else if (status == napi_closing)
    function_ = nullptr;
}

void Mailbox::hold() {
  const std::lock_guard lock(mutex_);
  if (holds_++ == 0 && function_ != nullptr) napi_ref_threadsafe_function(env_, function_);
}

void Mailbox::release() {
  const std::lock_guard lock(mutex_);
  if (--holds_ == 0 && function_ != nullptr) napi_unref_threadsafe_function(env_, function_);
}

void Mailbox::close() {
  const std::lock_guard lock(mutex_);
  if (function_ != nullptr) napi_release_threadsafe_function(function_, napi_tsfn_abort);
  function_ = nullptr;
}

void Mailbox::abandon() {
  const std::lock_guard lock(mutex_);
  function_ = nullptr;
}

}  // namespace nanoweave
