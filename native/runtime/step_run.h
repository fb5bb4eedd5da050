// StepRun: one step on its way through the threads that run it (of ranks on the CPU, of devices on
// CUDA). Every thread arrives once; the last one completes the step.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>

#include "runtime/backend.h"

namespace nanoweave {

class StepRun {
 public:
  StepRun(std::shared_ptr<const Step> step, int num_threads, Backend::Done done);

  const Step& step() const { return *step_; }
  StepResult& result() { return *result_; }  // a group's entry: its first rank only

  void mark_started();  // the first thread to begin sets the time
  // How long a device worked on the step, by its own clock; the longest counts.
  void report_device_time(double us);
  void mark_failed() { failed_.store(true, std::memory_order_relaxed); }

  // True on the last thread of all, which then calls complete().
  bool arrive() { return threads_left_.fetch_sub(1, std::memory_order_acq_rel) == 1; }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  // Calls `done`: with `failure` if there is one, else with the result.
  void complete(std::exception_ptr failure);

 private:
  using Clock = std::chrono::steady_clock;

  const std::shared_ptr<const Step> step_;
  std::unique_ptr<StepResult> result_;
  const Backend::Done done_;
  const Clock::time_point submitted_;
  std::atomic<int64_t> started_ns_{0};  // after submitted_; 0: not yet
  std::atomic<int64_t> device_ns_{-1};  // −1: no device reported
  std::atomic<int> threads_left_;
  std::atomic<bool> failed_{false};
};

}  // namespace nanoweave
