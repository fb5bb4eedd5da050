// HostComm: what the rank threads of one CPU device share to act together: heap bases, epoch
// words, an abort word and the fault record. A rank holds it by reference and names itself.
//
// Waits spin at most 20 µs, then park on a futex; with more threads than cores they park at once.
// A wait past its deadline writes the fault record (first writer wins), sets the abort word,
// wakes everybody and throws EngineError(kRankTimeout) naming the rank it waited for; ranks that
// see the abort word throw AbortedError. A communicator that has faulted stays poisoned; its
// runtime must be closed and made anew.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/protocol.h"
#include "core/error.h"

namespace nanoweave {

inline constexpr int kGroupSlots = 4;  // overlapped matmuls in flight: one per nano-batch

struct FaultRecord {
  int rank = -1;  // who noticed
  int peer = -1;  // whom it waited for
  int phase = 0;  // barrier of the op: 0 entry, 1 after push, …; or a row group
  uint32_t epoch = 0;
  int step = -1;
  std::string op = {};      // label of the waiter's op
  std::string reason = {};  // one sentence
};

// Thrown by a rank that was told to stop because another one failed: never the root cause.
class AbortedError : public EngineError {
 public:
  using EngineError::EngineError;
};

class HostComm {
 public:
  // heaps[r]: base of rank r's symmetric heap, heap_bytes each.
  HostComm(std::vector<std::byte*> heaps, int64_t heap_bytes, std::chrono::milliseconds timeout,
           bool oversubscribed);
  ~HostComm();

  int world() const { return static_cast<int>(heaps_.size()); }
  int64_t heap_bytes() const { return heap_bytes_; }

  // The address in `peer`'s heap that corresponds to `pointer` in `self`'s heap.
  template <typename T>
  T* at_peer(T* pointer, int self, int peer) const {
    const auto* base = reinterpret_cast<const std::byte*>(pointer);
    return reinterpret_cast<T*>(heaps_[peer] + (base - heaps_[self]));
  }

  // All ranks of [first, first + count) arrive; what each wrote before is visible to all after.
  // acquire/release. `phase` and `op` go to the fault record. A rank takes part in barriers of the
  // whole world and of one fixed smaller group (its attention group); each kind has its own epochs.
  void barrier(int self, int first, int count, int phase, const std::string& op, int step);

  // Flags of row groups (protocol.h), epochs per slot, group and source rank. A rank says that it
  // has done its part of a group, and the peers of [first, first + count) that wait for it go on;
  // what it wrote before is visible to those who saw the flag. Every rank runs the same ops, so the
  // epoch it returns is the one that the peers publish for that group. A slot is used by one op at
  // a time.
  uint32_t publish_group(int self, int first, int count, int slot, int group);
  bool has_published(int peer, int slot, int group, uint32_t epoch) const;
  // Bounded, as barrier() is.
  void wait_for_group(int self, int peer, int slot, int group, uint32_t epoch,
                      const std::string& op, int step);

  // Marks the communicator failed, wakes all waiters. Thread-safe, first caller's record stays.
  void fault(FaultRecord record);
  // Sets where the epochs stand; before the first barrier only (tests of the wrap-around).
  void start_epochs_at(uint32_t epoch);

  bool aborted() const { return aborted_.load(std::memory_order_acquire) != 0; }
  FaultRecord fault_record() const;
  // AbortedError naming the fault and the rank, op and step that stop because of it.
  [[noreturn]] void throw_aborted(int self, const std::string& op, int step) const;

  // Sleeps until aborted or the time is over (test-only stall op). True: aborted.
  bool sleep_unless_aborted(std::chrono::milliseconds duration);

 private:
  enum Span { kWorld, kGroup, kNumSpans };
  struct alignas(64) RankWords {
    std::atomic<uint32_t> epochs[kNumSpans] = {};  // barriers this rank has arrived at
    std::atomic<uint32_t> groups[kGroupSlots][kMaxRowGroups] = {};  // groups it has published
    std::atomic<int> waiting_for{-1};                               // peer this rank is parked for
    std::atomic<uint32_t> bell{0};  // changes when the parked rank must look again
  };

  // Until `theirs`, a word of the peer, has reached `epoch`.
  void wait_for_peer(int self, int peer, const std::atomic<uint32_t>& theirs, uint32_t epoch,
                     std::chrono::steady_clock::time_point deadline, int phase,
                     const std::string& op, int step);
  void ring_those_waiting_for(int self, int first, int count);
  [[noreturn]] void throw_timeout(FaultRecord record);
  void ring(int rank);

  std::vector<std::byte*> heaps_;  // [world]
  const int64_t heap_bytes_;
  const std::chrono::milliseconds timeout_;
  const bool oversubscribed_;
  std::unique_ptr<RankWords[]> words_;  // [world]
  std::atomic<uint32_t> aborted_{0};
  mutable std::mutex fault_mutex_;
  FaultRecord fault_;  // guarded by fault_mutex_
};

}  // namespace nanoweave
