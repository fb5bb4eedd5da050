// Mailbox: closures posted by native threads, run in order on the JavaScript thread. One
// ThreadSafeFunction per runtime. It keeps the event loop alive only while it is held.
#pragma once

#include <napi.h>

#include <functional>
#include <mutex>

namespace nanoweave {

class Mailbox {
 public:
  using Letter = std::function<void(Napi::Env)>;

  explicit Mailbox(Napi::Env env);
  ~Mailbox();

  // Any thread. Dropped when the mailbox is closed or the environment is going away.
  void post(Letter letter);

  // JavaScript thread only.
  void hold();     // the event loop stays alive …
  void release();  // … until as many releases
  void close();    // later letters are dropped

  // Thread that ends the process, when the event loop is gone already: drops letters, calls
  // nothing.
  void abandon();

 private:
  Napi::Env env_;
  int holds_ = 0;
  std::mutex mutex_;
  napi_threadsafe_function function_ = nullptr;  // guarded by mutex_; null once closed
};

}  // namespace nanoweave
