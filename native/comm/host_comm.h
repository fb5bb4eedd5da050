// HostComm: what the rank threads of one CPU device share to act together: heap bases, epoch
// words, an abort word and the fault record. A rank holds it by reference and names itself.
//
// Waits spin at most 20 µs, then park on a futex; with more threads than cores they park at once.
// A wait past its deadline writes the fault record (first writer wins), sets the abort word,
// wakes everybody and throws EngineError(kRankTimeout); ranks that see the abort word throw too.
// A communicator that has faulted stays poisoned; its runtime must be closed and made anew.
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

namespace nanoweave {

struct FaultRecord {
  int rank = -1;  // who noticed
  int peer = -1;  // whom it waited for
  int phase = 0;  // barrier of the op: 0 entry, 1 after push, …
  uint32_t epoch = 0;
  int step = -1;
  std::string op;      // label of the waiter's op
  std::string reason;  // one sentence
};

class HostComm {
 public:
  // heaps[r]: base of rank r's symmetric heap, heap_bytes each.
  HostComm(std::vector<std::byte*> heaps, int64_t heap_bytes, std::chrono::milliseconds timeout,
           bool oversubscribed);
  ~HostComm();

  int world() const { return static_cast<int>(heaps_.size()); }

  // The address in `peer`'s heap that corresponds to `pointer` in `self`'s heap.
  template <typename T>
  T* at_peer(T* pointer, int self, int peer) const {
    const auto* base = reinterpret_cast<const std::byte*>(pointer);
    return reinterpret_cast<T*>(heaps_[peer] + (base - heaps_[self]));
  }

  // All ranks of [first, first + count) arrive; what each wrote before is visible to all after.
  // acquire/release. `phase` and `op` go to the fault record.
  void barrier(int self, int first, int count, int phase, const std::string& op, int step);

  // Marks the communicator failed, wakes all waiters. Thread-safe, first caller's record stays.
  void fault(FaultRecord record);
  bool aborted() const { return aborted_.load(std::memory_order_acquire) != 0; }
  FaultRecord fault_record() const;

  // Sleeps until aborted or the time is over (test-only stall op). True: aborted.
  bool sleep_unless_aborted(std::chrono::milliseconds duration);

 private:
  struct alignas(64) EpochWord {
    std::atomic<uint32_t> value{0};
  };
  std::vector<std::byte*> heaps_;  // [world]
  const int64_t heap_bytes_;
  const std::chrono::milliseconds timeout_;
  const bool oversubscribed_;
  std::unique_ptr<EpochWord[]> arrived_;  // [world] epochs each rank has published
  std::atomic<uint32_t> aborted_{0};
  mutable std::mutex fault_mutex_;
  FaultRecord fault_;  // guarded by fault_mutex_
};

}  // namespace nanoweave
