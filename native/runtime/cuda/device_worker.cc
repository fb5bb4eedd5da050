#include "runtime/cuda/device_worker.h"

#include <algorithm>

#include "core/error.h"
#include "core/futex.h"

namespace nanoweave {

namespace {

constexpr int kBusyPolls = 2000;  // tens of µs: most decoding steps end within some hundred
constexpr auto kPollInterval = std::chrono::microseconds(50);
// A step holds no wait longer than the timeout; beyond this many it is taken for hung.
constexpr int kTimeoutsOfStep = 4;
constexpr auto kLeastStepTime = std::chrono::minutes(2);
// From an abort, until its kernels must have left.
constexpr auto kLeaveTime = std::chrono::seconds(20);

const std::string kNoOp;

}  // namespace

DeviceWorker::DeviceWorker(DeviceState& state, CudaComm& comm, RootCause& root_cause,
                           std::chrono::milliseconds timeout, ExplainFault explain_fault)
    : state_(state),
      comm_(comm),
      root_cause_(root_cause),
      timeout_(timeout),
      explain_fault_(std::move(explain_fault)),
      stages_{StepStage(state), StepStage(state)} {
  thread_ = std::thread([this] { work(); });
}

DeviceWorker::~DeviceWorker() { stop(); }

void DeviceWorker::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  arrived_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void DeviceWorker::reserve(const DeviceProgram& program) {
  for (StepStage& stage : stages_) stage.reserve(program);
}

void DeviceWorker::submit(std::shared_ptr<DeviceProgram> program, std::shared_ptr<StepRun> run) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back({std::move(program), std::move(run)});
  }
  arrived_.notify_one();
}

void DeviceWorker::work() {
  for (;;) {
    if (start_next()) continue;
    if (!running_.empty()) {
      if (!finish_first()) pause();
    } else if (!wait_for_step()) {
      return;
    }
  }
}

bool DeviceWorker::wait_for_step() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return stop_ || !queue_.empty(); });
  return !queue_.empty();
}

void DeviceWorker::pause() {
  if (++idle_polls_ < kBusyPolls) return spin_pause();
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, kPollInterval,
                    [&] { return !queue_.empty() && can_start(queue_.front()); });
}

bool DeviceWorker::can_start(const Queued& next) const {
  if (running_.empty()) return true;
  if (running_.size() == kStepsOnDevice) return false;
  if (running_.back().holds_device) return false;
  // A failed runtime fails its steps in order.
  if (root_cause_.get() != nullptr) return false;
  return stages_[next_stage_].fits(*next.program, next.run->step());
}

bool DeviceWorker::take(Queued& next) {
  const std::lock_guard lock(mutex_);
  if (queue_.empty() || !can_start(queue_.front())) return false;
  next = std::move(queue_.front());
  queue_.pop_front();
  return true;
}

bool DeviceWorker::start_next() {
  Queued next;
  if (!take(next)) return false;
  idle_polls_ = 0;
  next.run->mark_started();
  if (root_cause_.get() != nullptr)
    settle(*next.run, true);
  else
    launch(std::move(next));
  return true;
}

void DeviceWorker::launch(Queued next) {
  const size_t index = next_stage_;
  next_stage_ = (next_stage_ + 1) % kStepsOnDevice;
  StepStage& stage = stages_[index];
  const Step& step = next.run->step();
  const Clock::duration most = most_time(*next.program);
  Running running{
      {std::move(next.program), std::move(next.run)}, index, holds_device(step), false, most, {}};
  try {
    use_device(state_.device().ordinal);
    stage.start(*running.program, step);
  } catch (...) {
    fail_current(step.id);
    running.failed = true;
    drain();
  }
  running.deadline = Clock::now() + most;
  running_.push_back(std::move(running));
}

// Part of a step that could not be enqueued may be on the device, in any lane. Its kernels have
// been told to leave.
void DeviceWorker::drain() {
  try {
    state_.synchronize(kLeaveTime);
  } catch (const EngineError&) {
    // The device is lost: nothing runs on it any more, or what runs there never ends.
    if (devices_given_up()) lost_.store(true, std::memory_order_release);
  }
}

bool DeviceWorker::finish_first() {
  Running& running = running_.front();
  try {
    const bool ended = running.failed || stages_[running.stage].done();
    if (!ended && !lost()) {
      check_deadline(running);
      return false;
    }
    if (!lost() && !running.failed) complete(running);
  } catch (...) {
    fail_current(running.run->step().id);
    running.failed = true;
  }
  settle(*running.run, running.failed || lost());
  running_.pop_front();
  // The next has waited for this one.
  if (!running_.empty()) running_.front().deadline = Clock::now() + running_.front().most;
  return true;
}

void DeviceWorker::complete(Running& running) {
  report_fault(running.run->step().id);
  if (comm_.aborted()) {
    running.failed = true;
    return;
  }
  running.run->report_device_time(stages_[running.stage].elapsed());
  stages_[running.stage].collect(*running.program, running.run->step(), running.run->result());
}

// Our own kernels report whom they wait for too long. NCCL's do not: a step that takes them has the
// time of one wait.
DeviceWorker::Clock::duration DeviceWorker::most_time(const DeviceProgram& program) const {
  if (program.uses_nccl()) return timeout_;
  return std::max<Clock::duration>(kTimeoutsOfStep * timeout_, kLeastStepTime);
}

void DeviceWorker::check_communicators(int step) {
  try {
    comm_.check();
  } catch (EngineError& error) {
    error.step = step;
    root_cause_.report(error);
    comm_.abort();
  }
}

// A step past its deadline is aborted; one that does not end even then never will.
void DeviceWorker::check_deadline(Running& running) {
  const int step = running.run->step().id;
  check_communicators(step);
  const auto now = Clock::now();
  if (comm_.aborted()) running.deadline = std::min(running.deadline, now + kLeaveTime);
  if (now < running.deadline) return;
  if (comm_.aborted()) {
    cause_of_failure(step);
    give_up_devices();
    lost_.store(true, std::memory_order_release);
    return;
  }
  report_fault(step);  // comes first, where a kernel of ours has said whom it waits for
  root_cause_.report(explain_overdue(running));
  comm_.abort();
  running.deadline = now + kLeaveTime;
}

EngineError DeviceWorker::explain_overdue(const Running& running) const {
  const int step = running.run->step().id;
  const std::string text = "step " + std::to_string(step) +
                           " did not end on cuda:" + std::to_string(state_.device().ordinal);
  if (!running.program->uses_nccl()) return EngineError(ErrorCode::kRankFault, text);
  EngineError error(ErrorCode::kRankTimeout,
                    text + " within " + std::to_string(timeout_.count()) +
                        " ms: a rank did not come to a collective (NCCL does not say which); all "
                        "communicators were aborted, the runtime must be closed and made anew");
  error.step = step;
  return error;
}

// The exception being handled becomes a cause, and all ranks leave.
void DeviceWorker::fail_current(int step) {
  root_cause_.report_current(state_.ranks().front(), kNoOp, step);
  comm_.abort();
}

void DeviceWorker::report_fault(int step) {
  const auto fault = comm_.root_fault();
  if (!fault) return;
  EngineError error = explain_fault_(*fault);
  error.step = step;
  root_cause_.report(error);
}

// Never null. Kernels see an abort before the fault behind it is written down, or reported.
std::exception_ptr DeviceWorker::cause_of_failure(int step) {
  if (root_cause_.get() == nullptr) report_fault(step);
  if (root_cause_.get() == nullptr)
    root_cause_.report(EngineError(ErrorCode::kRankFault,
                                   "step " + std::to_string(step) + " was given up on cuda:" +
                                       std::to_string(state_.device().ordinal) +
                                       " and no rank said why; the runtime must be made anew"));
  return root_cause_.get();
}

void DeviceWorker::settle(StepRun& run, bool failed) {
  if (failed) run.mark_failed();
  if (run.arrive()) run.complete(run.failed() ? cause_of_failure(run.step().id) : nullptr);
}

}  // namespace nanoweave
