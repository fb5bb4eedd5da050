// CudaComm: what the ranks of all devices share to act together: a heap and a signal pad each, the
// abort word and the fault records, both in memory that every device and the host see; multicast
// heaps where all groups can have them, and NCCL's communicators where a program takes them.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda/comm.h"
#include "cuda/device.h"
#include "cuda/multicast_heap.h"
#include "cuda/nccl.h"
#include "runtime/cuda/host_copies.h"
#include "runtime/cuda/side_streams.h"

namespace nanoweave {

struct CudaCommOptions {
  std::vector<int> device_of;  // [world]: where a rank is placed
  int tp = 1;
  int64_t heap_bytes = 0;
  std::chrono::milliseconds timeout{30000};
  uint32_t first_epoch = 0;
  bool peer_access = true;   // inside every group
  bool world_access = true;  // of all devices to all
  bool deterministic = false;
};

class CudaComm {
 public:
  CudaComm(CudaCommOptions options, HostCopies& copies);

  const CommView& view() const { return view_; }
  std::byte* heap(int rank) const { return view_.heaps[rank]; }
  // Why plain memory must do; empty: all ranks have a multicast heap.
  const std::string& multicast_missing() const { return multicast_missing_; }

  // Control thread. Why there can be no communicators; empty: connect_nccl() makes them. Looks for
  // the library on the first call.
  const std::string& nccl_missing();
  void connect_nccl(std::span<const std::unique_ptr<DeviceState>> devices);
  NcclWorld* nccl() const { return nccl_.load(); }

  // Any thread. Kernels that wait leave within a few µs, and every later wait ends at once.
  void abort();
  bool aborted() const;
  // Any thread. Throws where a communicator has failed.
  void check();

  // The fault that explains the others: of a rank that waited for one that waited for nobody. Null
  // record: no kernel has reported any.
  std::optional<DeviceFault> root_fault() const;

 private:
  void make_heaps();
  bool make_multicast_heaps();
  NcclOptions nccl_options() const;

  const CudaCommOptions options_;
  std::vector<std::unique_ptr<MulticastHeap>> multicast_heaps_;  // by group; or none at all
  std::string multicast_missing_;
  std::vector<DeviceMemory> heaps_, pads_;  // [world]; heaps: where there is no multicast
  PinnedMemory shared_;                     // abort word, then fault records
  CommView view_{};

  const NcclLibrary* nccl_library_ = nullptr;
  std::optional<std::string> nccl_missing_;  // nothing: not looked for
  std::unique_ptr<SideStreamPool> side_streams_;
  std::unique_ptr<NcclWorld> nccl_owner_;
  std::atomic<NcclWorld*> nccl_{nullptr};  // that of nccl_owner_, for abort()
};

}  // namespace nanoweave
