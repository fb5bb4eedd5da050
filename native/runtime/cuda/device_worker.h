// DeviceWorker: the one thread of a device. It takes steps in order, keeps up to two of them on the
// device, and watches the first: for its end, for a fault its kernels report, and for a device that
// no longer answers.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/cuda/step_stage.h"
#include "runtime/root_cause.h"

namespace nanoweave {

class DeviceWorker {
 public:
  // Turns a fault record into the error that names its rank and op.
  using ExplainFault = std::function<EngineError(const DeviceFault&)>;

  DeviceWorker(DeviceState& state, CudaComm& comm, RootCause& root_cause,
               std::chrono::milliseconds timeout, ExplainFault explain_fault);
  ~DeviceWorker();

  // Control thread, with no step running.
  void reserve(const DeviceProgram& program);

  // Any thread.
  void submit(std::shared_ptr<DeviceProgram> program, std::shared_ptr<StepRun> run);

  // Fails what is queued, waits for what runs, joins.
  void stop();
  // The device stopped answering: freeing what it uses would hang.
  bool lost() const { return lost_.load(std::memory_order_acquire); }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kStepsOnDevice = 2;

  struct Queued {
    std::shared_ptr<DeviceProgram> program;
    std::shared_ptr<StepRun> run;
  };
  struct Running : Queued {
    size_t stage;
    bool holds_device;  // until its results were fetched
    bool failed;
    Clock::duration most;  // time on the device
    Clock::time_point deadline;
  };

  void work();
  bool start_next();
  bool finish_first();
  bool wait_for_step();
  void pause();
  bool take(Queued& next);
  bool can_start(const Queued& next) const;
  void launch(Queued next);
  void drain();
  void complete(Running& running);
  void check_deadline(Running& running);
  void check_communicators(int step);
  Clock::duration most_time(const DeviceProgram& program) const;
  EngineError explain_overdue(const Running& running) const;
  void fail_current(int step);
  void report_fault(int step);
  std::exception_ptr cause_of_failure(int step);
  void settle(StepRun& run, bool failed);

  DeviceState& state_;
  CudaComm& comm_;
  RootCause& root_cause_;
  const std::chrono::milliseconds timeout_;
  const ExplainFault explain_fault_;

  // Device thread, and control thread while no step runs.
  std::array<StepStage, kStepsOnDevice> stages_;
  size_t next_stage_ = 0;
  std::deque<Running> running_;
  int idle_polls_ = 0;

  std::atomic<bool> lost_{false};
  std::mutex mutex_;
  std::condition_variable arrived_;
  // Guarded by mutex_:
  std::deque<Queued> queue_;
  bool stop_ = false;

  std::thread thread_;  // last: uses all of the above
};

}  // namespace nanoweave
