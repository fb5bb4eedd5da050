// Runtime: a backend and its control thread. Steps go straight to the backend; everything else
// (loading, reading, closing) is a task of the control thread, which waits until no step runs.
// Tasks and steps take effect in the order of the calls. Completions come from the control thread
// or a device thread, exactly once per call that did not throw.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/backend.h"

namespace nanoweave {

class Runtime {
 public:
  template <typename Value>
  using Settle = std::function<void(Value, std::exception_ptr)>;
  using SettleVoid = std::function<void(std::exception_ptr)>;

  explicit Runtime(const RuntimeConfig& config);
  ~Runtime();  // shuts down

  // One thread calls these. They throw ERR_CLOSED once close() was called; submit also throws
  // ERR_STEP for a malformed step, and the root cause once a step has failed.
  void load_weights(std::string manifest, ProgressCallback progress, SettleVoid settle);
  void load_program(std::string json, Settle<int> settle);
  void submit(int program_id, std::span<const int32_t> words, Settle<std::vector<int32_t>> settle);
  void read(int program_id, std::string buffer, int rank, Settle<std::vector<uint8_t>> settle);
  void write(int program_id, std::string buffer, int rank, std::vector<uint8_t> bytes,
             SettleVoid settle);

  // Refuses new work; what was submitted finishes, steps within the wait timeout, else they fail
  // with ERR_CLOSED; then threads are joined and memory freed. May be called again.
  void close(SettleVoid settle);

  // Abrupt: aborts what runs, joins all threads, frees everything before it returns.
  void shutdown();

 private:
  struct Task {
    std::function<void()> run;                       // settles
    std::function<void(std::exception_ptr)> reject;  // when the runtime shuts down before it ran
    bool exclusive = true;                           // waits until no step runs
  };

  void require_open() const;
  void enqueue(Task task);
  void control();
  void run_step(int program_id, std::shared_ptr<const Step> step,
                const Settle<std::vector<int32_t>>& settle);
  void finish_close();

  const RuntimeConfig config_;
  std::atomic<bool> closing_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  std::unique_ptr<Backend> backend_;  // null once closed
  std::deque<Task> tasks_;
  bool busy_ = false;  // the control thread runs a task
  bool stop_ = false;
  bool closed_ = false;
  int64_t steps_in_flight_ = 0;
  std::vector<const Program*> programs_;  // owned by backend_
  std::exception_ptr failure_;            // of the first step that failed
  std::vector<SettleVoid> close_waiters_;

  std::thread control_thread_;  // last: uses all of the above
};

}  // namespace nanoweave
