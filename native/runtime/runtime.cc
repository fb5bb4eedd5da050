#include "runtime/runtime.h"

#include <utility>

namespace nanoweave {

namespace {

EngineError closed_error() {
  return EngineError(ErrorCode::kClosed, "the runtime is closed; make a new one");
}

}  // namespace

Runtime::Runtime(const RuntimeConfig& config) : config_(config), backend_(make_backend(config)) {
  control_thread_ = std::thread([this] { control(); });
}

Runtime::~Runtime() { shutdown(); }

void Runtime::require_open() const {
  if (closing_.load(std::memory_order_relaxed)) throw closed_error();
}

void Runtime::enqueue(Task task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

void Runtime::load_weights(std::string manifest, ProgressCallback progress, SettleVoid settle) {
  require_open();
  auto run = [this, manifest = std::move(manifest), progress = std::move(progress), settle] {
    std::exception_ptr failure;
    try {
      // Closing does not wait for a long load.
      backend_->load_weights(parse_manifest(manifest, static_cast<int>(config_.devices.size())),
                             [&](int64_t done, int64_t total) {
                               if (closing_.load(std::memory_order_relaxed)) throw closed_error();
                               if (progress) progress(done, total);
                             });
    } catch (...) {
      failure = std::current_exception();
    }
    settle(failure);
  };
  enqueue({.run = std::move(run), .reject = settle});
}

void Runtime::load_program(std::string json, Settle<int> settle) {
  require_open();
  auto run = [this, json = std::move(json), settle] {
    int id = -1;
    std::exception_ptr failure;
    try {
      Program program = parse_program(json);
      verify_program(program);
      {
        // Cannot fail once the backend has the program: ids are the backend's.
        const std::lock_guard lock(mutex_);
        programs_.reserve(programs_.size() + 1);
      }
      id = backend_->load_program(std::move(program));
      const std::lock_guard lock(mutex_);
      programs_.push_back(&backend_->program(id));
    } catch (...) {
      failure = std::current_exception();
    }
    settle(id, failure);
  };
  enqueue({.run = std::move(run),
           .reject = [settle](std::exception_ptr why) { settle(-1, std::move(why)); }});
}

void Runtime::submit(int program_id, std::span<const int32_t> words,
                     Settle<std::vector<int32_t>> settle) {
  require_open();
  const Program* program = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    if (program_id < 0 || program_id >= static_cast<int>(programs_.size()))
      fail(ErrorCode::kUsage, "there is no program %d", program_id);
    program = programs_[program_id];
  }
  std::shared_ptr<const Step> step = parse_step(*program, words);

  const std::lock_guard lock(mutex_);
  if (tasks_.empty() && !busy_) {
    run_step(program_id, std::move(step), settle);
    return;
  }
  auto run = [this, program_id, step = std::move(step), settle] {
    const std::lock_guard task_lock(mutex_);
    if (failure_)
      settle({}, failure_);
    else
      run_step(program_id, step, settle);
  };
  tasks_.push_back({.run = std::move(run),
                    .reject = [settle](std::exception_ptr why) { settle({}, std::move(why)); },
                    .exclusive = false});
  changed_.notify_all();
}

// With mutex_ held.
void Runtime::run_step(int program_id, std::shared_ptr<const Step> step,
                       const Settle<std::vector<int32_t>>& settle) {
  auto done = [this, step, settle](std::unique_ptr<StepResult> result, std::exception_ptr why) {
    std::vector<int32_t> words;
    try {
      if (!why) words = encode_result(*step, *result);
    } catch (...) {
      why = std::current_exception();
    }
    if (why) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = why;
    }
    settle(std::move(words), why);
    const std::lock_guard lock(mutex_);
    --steps_in_flight_;
    changed_.notify_all();
  };
  ++steps_in_flight_;
  try {
    backend_->run(program_id, step, std::move(done));
  } catch (...) {
    // Some ranks may have the step and others not: they fail, and `done` is not called.
    const std::exception_ptr why = std::current_exception();
    --steps_in_flight_;
    changed_.notify_all();
    if (!failure_) failure_ = why;
    backend_->abort(
        EngineError(ErrorCode::kOutOfMemory, "a step could not be handed to all ranks"));
    settle({}, why);
  }
}

void Runtime::read(int program_id, std::string buffer, int rank,
                   Settle<std::vector<uint8_t>> settle) {
  require_open();
  auto run = [this, program_id, buffer = std::move(buffer), rank, settle] {
    std::vector<uint8_t> bytes;
    std::exception_ptr failure;
    try {
      bytes = backend_->read(program_id, buffer, rank);
    } catch (...) {
      failure = std::current_exception();
    }
    settle(std::move(bytes), failure);
  };
  enqueue({.run = std::move(run),
           .reject = [settle](std::exception_ptr why) { settle({}, std::move(why)); }});
}

void Runtime::write(int program_id, std::string buffer, int rank, std::vector<uint8_t> bytes,
                    SettleVoid settle) {
  require_open();
  auto run = [this, program_id, buffer = std::move(buffer), rank, bytes = std::move(bytes),
              settle] {
    std::exception_ptr failure;
    try {
      backend_->write(program_id, buffer, rank, bytes);
    } catch (...) {
      failure = std::current_exception();
    }
    settle(failure);
  };
  enqueue({.run = std::move(run), .reject = settle});
}

void Runtime::close(SettleVoid settle) {
  {
    const std::lock_guard lock(mutex_);
    if (!closed_ && !stop_) {
      close_waiters_.push_back(std::move(settle));
      if (!closing_.exchange(true, std::memory_order_relaxed))
        tasks_.push_back({.run = [this] { finish_close(); }, .reject = {}, .exclusive = false});
      changed_.notify_all();
      return;
    }
  }
  settle(nullptr);
}

// Control thread.
void Runtime::finish_close() {
  std::unique_lock lock(mutex_);
  const auto idle = [&] { return steps_in_flight_ == 0; };
  const auto settled = [&] { return idle() || stop_; };
  if (!changed_.wait_for(lock, std::chrono::milliseconds(config_.wait_timeout_ms), settled) ||
      !idle()) {
    backend_->abort(
        EngineError(ErrorCode::kClosed, "the runtime was closed and the step did not end in time"));
    changed_.wait(lock, idle);
  }
  programs_.clear();
  std::unique_ptr<Backend> backend = std::move(backend_);
  lock.unlock();
  backend.reset();  // joins the rank threads, frees heaps, weights and KV
  lock.lock();
  closed_ = true;
  const std::vector<SettleVoid> waiters = std::move(close_waiters_);
  lock.unlock();
  for (const SettleVoid& waiter : waiters) waiter(nullptr);
}

void Runtime::shutdown() {
  {
    const std::lock_guard lock(mutex_);
    closing_.store(true, std::memory_order_relaxed);
    stop_ = true;
    if (backend_) backend_->abort(closed_error());
  }
  changed_.notify_all();
  if (control_thread_.joinable()) control_thread_.join();
  backend_.reset();  // fails the steps still queued, joins
}

void Runtime::control() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
    if (stop_) break;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    if (task.exclusive) {
      changed_.wait(lock, [&] { return stop_ || steps_in_flight_ == 0; });
      if (stop_) {
        tasks_.push_front(std::move(task));
        break;
      }
    }
    lock.unlock();
    task.run();
    task = {};  // frees what it captured outside the lock
    lock.lock();
    busy_ = false;
    if (closed_) return;
  }
  const std::deque<Task> rest = std::move(tasks_);
  const std::vector<SettleVoid> waiters = std::move(close_waiters_);
  closed_ = true;
  lock.unlock();
  for (const Task& task : rest)
    if (task.reject) task.reject(std::make_exception_ptr(closed_error()));
  for (const SettleVoid& waiter : waiters) waiter(nullptr);
}

}  // namespace nanoweave
