// Barrier of rank threads, and flags of row groups. Each rank publishes a monotonic epoch and waits
// until every peer has published it too. A rank that parks names the peer it waits for; that peer
// rings its bell. The store of an epoch and the load of `waiting_for` (and the reverse on the
// waiter's side) are sequentially consistent, so that one of the two always sees the other.
#include "comm/host_comm.h"

#include <utility>

#include "core/futex.h"

namespace nanoweave {

using Clock = std::chrono::steady_clock;

namespace {
constexpr std::chrono::microseconds kSpinTime{20};
constexpr int kSpinsPerClockRead = 32;
}  // namespace

HostComm::HostComm(std::vector<std::byte*> heaps, int64_t heap_bytes,
                   std::chrono::milliseconds timeout, bool oversubscribed)
    : heaps_(std::move(heaps)),
      heap_bytes_(heap_bytes),
      timeout_(timeout),
      oversubscribed_(oversubscribed),
      words_(std::make_unique<RankWords[]>(heaps_.size())) {}

HostComm::~HostComm() = default;

void HostComm::start_epochs_at(uint32_t epoch) {
  for (int rank = 0; rank < world(); ++rank) {
    for (auto& word : words_[rank].epochs) word.store(epoch, std::memory_order_relaxed);
    for (auto& slot : words_[rank].groups)
      for (auto& word : slot) word.store(epoch, std::memory_order_relaxed);
  }
}

void HostComm::barrier(int self, int first, int count, int phase, const std::string& op, int step) {
  if (count <= 1) return;
  const Span span = count == world() ? kWorld : kGroup;
  std::atomic<uint32_t>& own = words_[self].epochs[span];
  const uint32_t epoch = own.load(std::memory_order_relaxed) + 1;  // this thread alone writes it
  own.store(epoch, std::memory_order_seq_cst);  // release: publishes what this rank wrote before
  ring_those_waiting_for(self, first, count);
  const Clock::time_point deadline = Clock::now() + timeout_;
  for (int peer = first; peer < first + count; ++peer)
    if (peer != self)
      wait_for_peer(self, peer, words_[peer].epochs[span], epoch, deadline, phase, op, step);
}

uint32_t HostComm::publish_group(int self, int first, int count, int slot, int group) {
  std::atomic<uint32_t>& own = words_[self].groups[slot][group];
  const uint32_t epoch = own.load(std::memory_order_relaxed) + 1;  // this thread alone writes it
  own.store(epoch, std::memory_order_seq_cst);  // release: publishes what this rank wrote before
  ring_those_waiting_for(self, first, count);
  return epoch;
}

bool HostComm::has_published(int peer, int slot, int group, uint32_t epoch) const {
  // acquire: pairs with the peer's publishing store.
  return epoch_reached(words_[peer].groups[slot][group].load(std::memory_order_acquire), epoch);
}

void HostComm::wait_for_group(int self, int peer, int slot, int group, uint32_t epoch,
                              const std::string& op, int step) {
  if (peer == self) return;
  wait_for_peer(self, peer, words_[peer].groups[slot][group], epoch, Clock::now() + timeout_, group,
                op, step);
}

void HostComm::ring_those_waiting_for(int self, int first, int count) {
  for (int peer = first; peer < first + count; ++peer)
    if (peer != self && words_[peer].waiting_for.load(std::memory_order_seq_cst) == self)
      ring(peer);
}

void HostComm::wait_for_peer(int self, int peer, const std::atomic<uint32_t>& theirs,
                             uint32_t epoch, Clock::time_point deadline, int phase,
                             const std::string& op, int step) {
  // acquire: pairs with the peer's publishing store.
  if (epoch_reached(theirs.load(std::memory_order_acquire), epoch)) return;
  if (!oversubscribed_) {
    const Clock::time_point spin_until = Clock::now() + kSpinTime;
    do {
      for (int i = 0; i < kSpinsPerClockRead; ++i) {
        if (epoch_reached(theirs.load(std::memory_order_acquire), epoch)) return;
        spin_pause();
      }
    } while (Clock::now() < spin_until && !aborted());
  }

  RankWords& mine = words_[self];
  mine.waiting_for.store(peer, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t seen = mine.bell.load(std::memory_order_seq_cst);
    if (epoch_reached(theirs.load(std::memory_order_seq_cst), epoch)) break;
    if (aborted_.load(std::memory_order_seq_cst) != 0) {
      mine.waiting_for.store(-1, std::memory_order_relaxed);
      throw_aborted(self, op, step);
    }
    const auto left = deadline - Clock::now();
    if (left.count() <= 0) {
      mine.waiting_for.store(-1, std::memory_order_relaxed);
      throw_timeout({.rank = self,
                     .peer = peer,
                     .phase = phase,
                     .epoch = epoch,
                     .step = step,
                     .op = op,
                     .reason = "it did not arrive in time"});
    }
    futex_wait_for(mine.bell, seen, std::chrono::duration_cast<std::chrono::nanoseconds>(left));
  }
  mine.waiting_for.store(-1, std::memory_order_relaxed);
}

void HostComm::ring(int rank) {
  words_[rank].bell.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(words_[rank].bell, kWakeAll);
}

void HostComm::throw_timeout(FaultRecord record) {
  const FaultRecord own = record;
  fault(std::move(record));
  const FaultRecord first = fault_record();
  if (first.rank != own.rank) throw_aborted(own.rank, own.op, own.step);
  EngineError error(ErrorCode::kRankTimeout,
                    "rank " + std::to_string(own.rank) + " waited " +
                        std::to_string(timeout_.count()) + " ms for rank " +
                        std::to_string(own.peer) + " at barrier " + std::to_string(own.phase) +
                        " of op '" + own.op + "'; the runtime must be closed and made anew");
  error.rank = own.peer;
  error.op = own.op;
  error.step = own.step;
  throw error;
}

void HostComm::throw_aborted(int self, const std::string& op, int step) const {
  const FaultRecord record = fault_record();
  AbortedError error(ErrorCode::kRankFault,
                     "rank " + std::to_string(self) + " stopped because rank " +
                         std::to_string(record.rank) + " failed: " + record.reason);
  error.rank = self;
  error.op = op;
  error.step = step;
  throw error;
}

void HostComm::fault(FaultRecord record) {
  {
    const std::lock_guard lock(fault_mutex_);
    if (aborted_.load(std::memory_order_relaxed) != 0) return;
    fault_ = std::move(record);
    aborted_.store(1, std::memory_order_seq_cst);
  }
  for (int rank = 0; rank < world(); ++rank) ring(rank);
  futex_wake(aborted_, kWakeAll);
}

FaultRecord HostComm::fault_record() const {
  const std::lock_guard lock(fault_mutex_);
  return fault_;
}

bool HostComm::sleep_unless_aborted(std::chrono::milliseconds duration) {
  const Clock::time_point end = Clock::now() + duration;
  while (!aborted()) {
    const auto left = end - Clock::now();
    if (left.count() <= 0) return false;
    futex_wait_for(aborted_, 0, std::chrono::duration_cast<std::chrono::nanoseconds>(left));
  }
  return true;
}

}  // namespace nanoweave
