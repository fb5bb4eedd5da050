// StepRun: one step on its way through the rank threads. Every rank arrives once; the last one
// completes the step.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>

#include "runtime/backend.h"
#include "runtime/executor.h"

namespace nanoweave {

class StepRun {
 public:
  StepRun(std::shared_ptr<const LoadedProgram> program, std::shared_ptr<const Step> step, int world,
          Backend::Done done);

  const LoadedProgram& program() const { return *program_; }
  const Step& step() const { return *step_; }
  StepResult& result() { return *result_; }  // a group's entry: its first rank only

  void mark_started();  // the first rank to begin sets the time
  void mark_failed() { failed_.store(true, std::memory_order_relaxed); }

  // True on the last rank of all, which then calls complete().
  bool arrive() { return ranks_left_.fetch_sub(1, std::memory_order_acq_rel) == 1; }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  // Calls `done`: with `failure` if there is one, else with the result.
  void complete(std::exception_ptr failure);

 private:
  using Clock = std::chrono::steady_clock;

  const std::shared_ptr<const LoadedProgram> program_;
  const std::shared_ptr<const Step> step_;
  std::unique_ptr<StepResult> result_;
  const Backend::Done done_;
  const Clock::time_point submitted_;
  std::atomic<int64_t> started_ns_{0};  // after submitted_; 0: not yet
  std::atomic<int> ranks_left_;
  std::atomic<bool> failed_{false};
};

}  // namespace nanoweave
