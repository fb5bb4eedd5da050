// The heaps of a group behind one multicast address: a store to it reaches all heaps, a reduction
// from it sums over all (Hopper and newer with NVSwitch). Two implementations, as for device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nanoweave {

class MulticastHeap {
 public:
  // Of ranks on `devices`, one each, `bytes` per heap; `readers`, among them those devices, map the
  // heaps. Null: `why` says what stands in the way, and plain memory must do.
  static std::unique_ptr<MulticastHeap> create(std::span<const int> devices,
                                               std::span<const int> readers, int64_t bytes,
                                               std::string& why);
  ~MulticastHeap();
  MulticastHeap(const MulticastHeap&) = delete;
  MulticastHeap& operator=(const MulticastHeap&) = delete;

  // The heap of the group's rank `index`, the same address on every device.
  std::byte* heap(int index) const { return heaps_[index]; }
  // Stands for all heaps, the same address on every device.
  std::byte* multicast() const { return multicast_; }

 private:
  struct Impl;
  explicit MulticastHeap(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
  std::vector<std::byte*> heaps_;
  std::byte* multicast_ = nullptr;
};

// Why ranks on these devices have no use for multicast or cannot have it, whatever the hardware.
std::string refuse_multicast(std::span<const int> devices);

}  // namespace nanoweave
