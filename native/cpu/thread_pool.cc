// A parallel_for is one 64-bit ticket {generation, indices left}: a thread claims an index by
// decrementing it with a compare-exchange, so a late thread can never touch the next call's work,
// and the caller never waits for a helper that has claimed nothing.
#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/futex.h"

namespace nanoweave {

namespace {

constexpr int kSpinsBeforePark = 20000;  // about 200 µs..1 ms of pause instructions
constexpr int kSpinsBeforeYield = 2000;

uint64_t remaining(uint64_t ticket) { return ticket & 0xffffffffu; }

}  // namespace

struct ThreadPool::State {
  int num_threads = 1;
  bool spin = true;

  // Written by the caller before it publishes a ticket; read only by threads that hold a claim.
  Call call = nullptr;
  const void* context = nullptr;
  int64_t count = 0;

  alignas(64) std::atomic<uint64_t> ticket{0};  // {generation : 32, indices left : 32}
  alignas(64) std::atomic<int64_t> running{0};  // indices not yet finished
  alignas(64) std::atomic<uint32_t> bell{0};    // changes when parked helpers should look again
  std::atomic<int> parked{0};
  std::atomic<bool> in_step{false};
  std::atomic<bool> stop{false};
  std::vector<std::thread> helpers;  // last: they use all of the above

  // Claims and runs indices until none is left.
  void work(int thread) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    while (remaining(seen) > 0) {
      if (!ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire))
        continue;
      const int64_t index = count - static_cast<int64_t>(remaining(seen));
      call(context, index, thread);
      running.fetch_sub(1, std::memory_order_release);
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  void wake_parked() {
    // seq_cst: pairs with park(), either it sees our ticket or we see it parked.
    if (parked.load(std::memory_order_seq_cst) == 0) return;
    bell.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(bell, kWakeAll);
  }

  void park() {
    parked.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t seen = bell.load(std::memory_order_seq_cst);
    if (remaining(ticket.load(std::memory_order_seq_cst)) == 0 &&
        !stop.load(std::memory_order_seq_cst))
      futex_wait(bell, seen);
    parked.fetch_sub(1, std::memory_order_seq_cst);
  }

  void stop_helpers() {
    stop.store(true, std::memory_order_seq_cst);
    bell.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(bell, kWakeAll);
    for (std::thread& helper : helpers) helper.join();
  }

  void help(int thread) {
    int idle = 0;
    while (!stop.load(std::memory_order_acquire)) {
      if (remaining(ticket.load(std::memory_order_acquire)) > 0) {
        work(thread);
        idle = 0;
      } else if (spin && in_step.load(std::memory_order_acquire) && ++idle < kSpinsBeforePark) {
        spin_pause();
      } else {
        park();
        idle = 0;
      }
    }
  }
};

ThreadPool::ThreadPool(int num_threads, bool spin) : state_(std::make_unique<State>()) {
  state_->num_threads = std::max(1, num_threads);
  state_->spin = spin;
  try {
    for (int thread = 1; thread < state_->num_threads; ++thread)
      state_->helpers.emplace_back([state = state_.get(), thread] { state->help(thread); });
  } catch (const std::system_error&) {
    state_->stop_helpers();
    fail(ErrorCode::kOutOfMemory, "the system has no thread left for a pool of %d", num_threads);
  }
}

ThreadPool::~ThreadPool() { state_->stop_helpers(); }

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::begin_step() {
  if (state_->num_threads == 1 || !state_->spin) return;
  state_->in_step.store(true, std::memory_order_release);
  state_->bell.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(state_->bell, kWakeAll);
}

void ThreadPool::end_step() { state_->in_step.store(false, std::memory_order_release); }

void ThreadPool::run(int64_t count, Call call, const void* context) {
  State& state = *state_;
  if (count <= 0) return;
  if (state.num_threads == 1 || count == 1) {
    for (int64_t index = 0; index < count; ++index) call(context, index, 0);
    return;
  }
  CHECK(count < (int64_t{1} << 32));
  state.call = call;
  state.context = context;
  state.count = count;
  state.running.store(count, std::memory_order_relaxed);
  const uint64_t generation = (state.ticket.load(std::memory_order_relaxed) >> 32) + 1;
  // Publishes the fields above to whoever claims an index.
  state.ticket.store(generation << 32 | static_cast<uint64_t>(count), std::memory_order_seq_cst);
  state.wake_parked();
  state.work(0);
  // acquire: what the helpers wrote is visible to the caller.
  for (int spins = 0; state.running.load(std::memory_order_acquire) > 0;) {
    if (++spins < kSpinsBeforeYield && state.spin)
      spin_pause();
    else
      std::this_thread::yield();
  }
}

}  // namespace nanoweave
