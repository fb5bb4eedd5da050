#include "runtime/step_run.h"

#include <algorithm>
#include <cmath>

namespace nanoweave {

namespace {

int32_t microseconds(std::chrono::nanoseconds duration) {
  const auto count = std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
  return static_cast<int32_t>(std::clamp<int64_t>(count, 0, INT32_MAX));
}

}  // namespace

StepRun::StepRun(std::shared_ptr<const Step> step, int num_threads, Backend::Done done)
    : step_(std::move(step)),
      result_(std::make_unique<StepResult>()),
      done_(std::move(done)),
      submitted_(Clock::now()),
      threads_left_(num_threads) {
  for (const GroupStep& group : step_->groups) {
    result_->groups.emplace_back();
    result_->groups.back().sampled.assign(group.rows.size(), -1);
    result_->groups.back().logprobs.assign(group.rows.size(), NAN);
  }
}

void StepRun::mark_started() {
  int64_t unset = 0;
  started_ns_.compare_exchange_strong(unset, (Clock::now() - submitted_).count() + 1,
                                      std::memory_order_relaxed);
}

void StepRun::report_device_time(double us) {
  const auto ns = static_cast<int64_t>(std::llround(us * 1000));
  int64_t longest = device_ns_.load(std::memory_order_relaxed);
  while (ns > longest &&
         !device_ns_.compare_exchange_weak(longest, ns, std::memory_order_relaxed)) {
  }
}

void StepRun::complete(std::exception_ptr failure) {
  if (failure) return done_(nullptr, std::move(failure));
  const std::chrono::nanoseconds total = Clock::now() - submitted_;
  const std::chrono::nanoseconds queued(started_ns_.load(std::memory_order_relaxed));
  const std::chrono::nanoseconds on_device(device_ns_.load(std::memory_order_relaxed));
  const std::chrono::nanoseconds running = on_device.count() < 0 ? total - queued : on_device;
  result_->queue_us = microseconds(total - running);
  result_->run_us = microseconds(running);
  done_(std::move(result_), nullptr);
}

}  // namespace nanoweave
