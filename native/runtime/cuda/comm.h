// CudaComm: what the ranks of all devices share to act together: a heap and a signal pad each, the
// abort word and the fault records, both in memory that every device and the host see.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <vector>

#include "cuda/comm.h"
#include "cuda/device.h"

namespace nanoweave {

class CudaComm {
 public:
  // device_of[r]: where rank r is placed.
  CudaComm(std::span<const int> device_of, int64_t heap_bytes, std::chrono::milliseconds timeout,
           uint32_t first_epoch);

  const CommView& view() const { return view_; }
  std::byte* heap(int rank) const { return heaps_[rank].data(); }

  // Any thread. Kernels that wait leave within a few µs, and every later wait ends at once.
  void abort();
  bool aborted() const;

  // The fault that explains the others: of a rank that waited for one that waited for nobody. Null
  // record: no kernel has reported any.
  std::optional<DeviceFault> root_fault() const;

 private:
  std::vector<DeviceMemory> heaps_, pads_;  // [world]
  PinnedMemory shared_;                     // abort word, then fault records
  CommView view_{};
};

}  // namespace nanoweave
